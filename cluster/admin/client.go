package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// answerBytesMax bounds an answer: the map of the largest cluster is far below.
const answerBytesMax = 256 << 20

// Client asks one node. Safe for concurrent use.
type Client struct {
	addr string
	http *http.Client
}

// NewClient returns a client of the node at addr (host:port). Nothing is sent yet.
func NewClient(addr string) *Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{addr: addr, http: &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, IdleConnTimeout: 30 * time.Second}}}
}

// Addr is who is asked.
func (c *Client) Addr() string { return c.addr }

// Close lets idle connections go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends body (nil: none) as JSON and returns the answer's body.
func (c *Client) do(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.addr+path, r)
	if err != nil {
		return nil, &ConnError{c.addr, err}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s of %s: %w", method, path, c.addr, context.Cause(ctx))
		}
		return nil, &ConnError{c.addr, err}
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	e := new(Error)
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(b, e) != nil || e.Text == "" {
		return nil, &ConnError{c.addr, fmt.Errorf("it answers %s to %s %s: no sheep daemon of this version", resp.Status, method, path)}
	}
	return nil, e
}

// get asks for path and decodes the answer into v.
func (c *Client) ask(ctx context.Context, method, path string, body, v any) error {
	r, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, answerBytesMax))
	if err != nil {
		return &ConnError{c.addr, err}
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("understand the answer of %s to %s: %w", c.addr, path, err)
	}
	return nil
}

// Map fetches the agreed map as that node has it.
func (c *Client) Map(ctx context.Context) (*state.Map, error) { return c.getMap(ctx, "/v1/map") }

// MapAfter fetches the map once it is newer than index; after some seconds it returns the map as it is.
func (c *Client) MapAfter(ctx context.Context, index uint64) (*state.Map, error) {
	return c.getMap(ctx, "/v1/map?after="+strconv.FormatUint(index, 10))
}

func (c *Client) getMap(ctx context.Context, path string) (*state.Map, error) {
	r, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, answerBytesMax))
	if err != nil {
		return nil, &ConnError{c.addr, err}
	}
	m, err := state.DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("understand the map that %s sent: %w", c.addr, err)
	}
	return m, nil
}

// Propose gives the cluster a command. An error means that it is not known whether the command was taken; a refusal is in the result.
func (c *Client) Propose(ctx context.Context, cmd *state.Command) (state.Result, error) {
	var r state.Result
	err := c.ask(ctx, http.MethodPost, "/v1/propose", cmd, &r)
	return r, err
}

// Status asks how the cluster is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.ask(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Node asks the node for itself.
func (c *Client) Node(ctx context.Context) (Node, error) {
	var n Node
	return n, c.ask(ctx, http.MethodGet, "/v1/node", nil, &n)
}

// Nodes asks for all nodes.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var n []Node
	return n, c.ask(ctx, http.MethodGet, "/v1/nodes", nil, &n)
}

// Recovery asks which nodes are being brought up to date.
func (c *Client) Recovery(ctx context.Context) ([]Recovery, error) {
	var r []Recovery
	return r, c.ask(ctx, http.MethodGet, "/v1/recovery", nil, &r)
}

// Usage asks what VDIs hold on the groups that the node is primary of, or on all.
func (c *Client) Usage(ctx context.Context, all bool) (Usage, error) {
	path := "/v1/usage"
	if all {
		path += "?" + url.Values{"all": {"1"}}.Encode()
	}
	var u Usage
	return u, c.ask(ctx, http.MethodGet, path, nil, &u)
}

// Format makes a cluster.
func (c *Client) Format(ctx context.Context, r FormatRequest) error {
	return c.ask(ctx, http.MethodPost, "/v1/format", r, nil)
}

// Shutdown stops all nodes.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "/v1/shutdown", struct{}{}, nil)
}

// Stop stops the node asked.
func (c *Client) Stop(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "/v1/stop", struct{}{}, nil)
}

// AddDisk gives the node asked another disk, a directory of its machine.
func (c *Client) AddDisk(ctx context.Context, dir string) error {
	return c.ask(ctx, http.MethodPost, "/v1/disk/add", DiskRequest{dir}, nil)
}

// RemoveDisk has the node asked move everything off a disk and let it go; Node shows how far that is.
func (c *Client) RemoveDisk(ctx context.Context, disk string) error {
	return c.ask(ctx, http.MethodPost, "/v1/disk/remove", DiskRequest{disk}, nil)
}

// Check has all replicas compared, or those of the node's own primaries, of all groups or of those in only; event is called for each line.
func (c *Client) Check(ctx context.Context, self bool, only []uint32, event func(CheckEvent)) error {
	path := "/v1/check"
	if self {
		path += "?self=1"
	}
	r, err := c.do(ctx, http.MethodPost, path, CheckRequest{only})
	if err != nil {
		return err
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	ended := false
	for lines.Scan() {
		var e CheckEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("understand the check of %s: %w", c.addr, err)
		}
		ended = ended || e.End
		event(e)
	}
	if err := lines.Err(); err != nil {
		return &ConnError{c.addr, err}
	}
	if !ended {
		return &ConnError{c.addr, errors.New("the connection ended before the check did")}
	}
	return nil
}
