package consensus

import "context"

// turn is a lock that may be held while its holder waits for something: whoever wants it may give up, and a simulation's clock goes on meanwhile.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn.
func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pass gives it to the next.
func (t turn) pass() { <-t }
