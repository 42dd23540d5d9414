package objstore

import "time"

// pace is how far a checkpoint is.
type pace struct {
	began       time.Time
	cut         pos
	done, plans int
}

// ahead says that a checkpoint may rest: nobody waits for it, and at this rate it is done before the next one is due, by time, by what was journaled
// since its cut, and by the objects that have changed since.
func (s *Store) ahead(p *pace) bool {
	if s.checkpointWaits.Load() > 0 || s.checkpointNow.Load() || s.j.full() || s.Space().NearFull {
		return false
	}
	room := (s.cfg.JournalBytesMax - s.cfg.CheckpointBytes) / 2
	return float64(p.done)/float64(p.plans) > max(
		time.Since(p.began).Seconds()/s.cfg.CheckpointInterval.Seconds(),
		float64(s.j.sinceCut(p.cut))/float64(room),
		float64(s.largeSince.Load())/float64(s.cfg.CheckpointBytes),
		float64(s.dirtyObjects.Load()-int64(p.plans))/float64(s.cfg.CheckpointObjects))
}

const (
	restTimes = 4 // as long as the wave before it took
	restMax   = time.Second
)

// rest leaves the disk and the processors to clients between two waves, if the
// checkpoint is ahead: without that they feel each one as a second or two in
// which they get a third of what they had.
func (s *Store) rest(p *pace, wave time.Duration) {
	select {
	case <-s.checkpointHurry: // from a time when none rested
	default:
	}
	if !s.ahead(p) {
		return
	}
	t := time.NewTimer(min(restTimes*wave, restMax))
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.checkpointHurry:
	case <-s.failed:
	case <-s.stop:
	}
}
