package state

import (
	"strconv"
	"strings"
	"time"
)

// speedMax and waitMax bound settings so that arithmetic with them never overflows.
const (
	speedMax = 1 << 50
	waitMax  = 10 * 365 * 24 * time.Hour
)

// SettingKeys are the names that Set takes, in the order they are shown.
var SettingKeys = []string{"rebuild-after", "resume-wait", "recovery-speed", "recovery-floor", "scrub-speed", "scrub-floor", "collect-speed"}

// set changes one setting; the value "default" takes it back.
func (e *edit) set(c *Set) *Error {
	s, d := &e.m.Settings, DefaultSettings()
	switch c.Key {
	case "rebuild-after":
		return setWait(&s.RebuildAfter, d.RebuildAfter, c)
	case "resume-wait":
		return setWait(&s.ResumeWait, d.ResumeWait, c)
	case "recovery-speed":
		return setSpeed(&s.RecoverySpeed, d.RecoverySpeed, c)
	case "recovery-floor":
		return setSpeed(&s.RecoveryFloor, d.RecoveryFloor, c)
	case "scrub-speed":
		return setSpeed(&s.ScrubSpeed, d.ScrubSpeed, c)
	case "scrub-floor":
		return setSpeed(&s.ScrubFloor, d.ScrubFloor, c)
	case "collect-speed":
		return setSpeed(&s.CollectSpeed, d.CollectSpeed, c)
	}
	return refuse(Invalid, "no setting %.60q: there are %s", c.Key, strings.Join(SettingKeys, ", "))
}

func setWait(to *time.Duration, normal time.Duration, c *Set) *Error {
	if c.Value == "default" {
		*to = normal
		return nil
	}
	v, err := time.ParseDuration(c.Value)
	if err != nil || v < 0 || v > waitMax {
		return refuse(Invalid, "set %s: %.60q is not a time like 90s, 10m or 1h30m", c.Key, c.Value)
	}
	*to = v
	return nil
}

func setSpeed(to *int64, normal int64, c *Set) *Error {
	if c.Value == "default" {
		*to = normal
		return nil
	}
	v, ok := parseSize(c.Value)
	if !ok || v < 1 || v > speedMax {
		return refuse(Invalid, "set %s: %.60q is not a number a second like 512K, 100M or 2G", c.Key, c.Value)
	}
	*to = v
	return nil
}

// parseSize reads whole numbers with a unit that is a power of 1024. (Fractions would need floating point, and the same digits on every machine.)
func parseSize(s string) (int64, bool) {
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGTP", s[n-1]&^0x20); i >= 0 {
			s, shift = s[:n-1], 10*(i+1)
		}
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || v > 1<<62>>shift {
		return 0, false
	}
	return v << shift, true
}

// shutdown marks the cluster as being stopped on purpose, or as started again.
func (e *edit) shutdown(c *Shutdown) *Error {
	e.m.ShutDown = c.Down
	return nil
}
