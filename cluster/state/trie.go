package state

// trie is a persistent map from 24-bit keys to *T: set returns a new trie that shares all but the four small arrays on the way to the
// key. So each Map has a complete directory, and a change of one VDI among a million costs 2 KiB.
type trie[T any] struct {
	top [64]*[64]*[64]*[64]*T
}

func (t *trie[T]) get(key uint32) *T {
	if a := t.top[key>>18&63]; a != nil {
		if b := a[key>>12&63]; b != nil {
			if c := b[key>>6&63]; c != nil {
				return c[key&63]
			}
		}
	}
	return nil
}

// set returns t with v under key; nil removes.
func (t *trie[T]) set(key uint32, v *T) *trie[T] {
	n := *t
	a := copied(n.top[key>>18&63])
	n.top[key>>18&63] = a
	b := copied(a[key>>12&63])
	a[key>>12&63] = b
	c := copied(b[key>>6&63])
	b[key>>6&63] = c
	c[key&63] = v
	return &n
}

// put changes t itself: only for a trie that nobody else has seen yet.
func (t *trie[T]) put(key uint32, v *T) {
	a := made(&t.top[key>>18&63])
	b := made(&a[key>>12&63])
	c := made(&b[key>>6&63])
	c[key&63] = v
}

func copied[A any](p *A) *A {
	n := new(A)
	if p != nil {
		*n = *p
	}
	return n
}

func made[A any](p **A) *A {
	if *p == nil {
		*p = new(A)
	}
	return *p
}
