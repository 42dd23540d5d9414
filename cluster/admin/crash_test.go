package admin

import (
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// broken is a node whose map cannot be had.
type broken struct{ LocalNode }

func (broken) Map() *state.Map     { panic("half of it is gone") }
func (broken) ResyncBytes() uint64 { return 0 }

// A panic anywhere ends the process, which others replace: no half of a node goes on. Here, in a request of the admin API, where net/http would catch it. The test runs itself
// as the process that has to end.
func TestFailure13NothingSurvivesAPanic(t *testing.T) {
	if os.Getenv("PANIC_CHILD") != "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: NewServer(broken{}, slog.New(slog.DiscardHandler)).http.Handler}
		go s.Serve(l)
		resp, err := http.Get("http://" + l.Addr().String() + "/v1/map")
		t.Fatalf("it went on: %v, %v", resp, err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFailure13NothingSurvivesAPanic$")
	cmd.Env = append(os.Environ(), "PANIC_CHILD=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: GET /v1/map: half of it is gone") || strings.Contains(string(out), "it went on") {
		t.Errorf("ended with %v and said %s", err, out)
	}
}
