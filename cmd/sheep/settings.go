package main

import (
	"fmt"
	"strings"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// settingWords say what each key of `cluster set` does.
var settingWords = map[string]string{
	"rebuild-after":  "a node that is down for this long is given up: its groups are given to others (a time like 90s, 10m, 1h30m; default 10m)",
	"resume-wait":    "groups all of whose members restarted wait this long for those that are not back, then go on with at least min-copies of them (a time; default 30s)",
	"recovery-speed": "most that a node copies to bring others up to date, in bytes a second (like 512K, 100M, 2G; default 100M)",
	"recovery-floor": "what such copying always gets, however busy clients are, in bytes a second (default 10M)",
	"collect-speed":  "objects a second that each node frees of what was deleted, at most (default 4K)",
	"scrub-speed":    "most that the slow check of everything reads, in bytes a second and disk (default 10M)",
	"scrub-floor":    "what that check always gets, in bytes a second and disk (default 1M)",
}

// settingsHelp is what `cluster set -h` says of keys and values.
func settingsHelp() string {
	var b strings.Builder
	b.WriteString("It counts at once, on all nodes, and is kept. The value \"default\" takes it back. `sheep cluster info --json` shows all.\n")
	for _, key := range state.SettingKeys {
		fmt.Fprintf(&b, "\n%s: %s", key, settingWords[key])
	}
	return b.String()
}
