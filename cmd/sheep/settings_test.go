package main

import (
	"strings"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// TestEverySettingIsDocumented: `cluster set -h` explains each key, and bad values of each are refused with what a good one looks like.
func TestEverySettingIsDocumented(t *testing.T) {
	for _, key := range state.SettingKeys {
		if settingWords[key] == "" || !strings.Contains(settingsHelp(), "\n"+key+": ") {
			t.Errorf("%s is explained nowhere", key)
		}
		for _, bad := range []string{"", "x", "-1", "1e9", "99999999999999999999", "10 m", "NaN"} {
			m := state.New()
			_, res := m.Apply(1, &state.Command{Set: &state.Set{Key: key, Value: bad}})
			if res.Err() == nil || !strings.Contains(res.Error, " like ") {
				t.Errorf("%s %q: %v", key, bad, res.Err())
			}
		}
	}
}
