package admin

import (
	"fmt"
	"net/http"
	"runtime/debug"
)

// crashing ends the whole process where a handler panics. net/http would swallow it, and go on with a node of which half is as the panic left it; a node that is gone
// is replaced within a second.
func crashing(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				stack := debug.Stack()
				go panic(fmt.Sprintf("%s %s: %v\n%s", r.Method, r.URL.Path, p, stack))
				select {}
			}
		}()
		h.ServeHTTP(w, r)
	})
}
