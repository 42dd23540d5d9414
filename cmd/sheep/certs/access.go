package certs

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// Access is the list of who may open what. What no line allows is denied.
//
//	# client      exports
//	web1          web1 web1:*
//	backup        *:*
//	*             public
//
// A client is the common name in its certificate, or * for anybody, also without one. In an export's name * stands for any characters, none included.
type Access struct{ lines []accessLine }

type accessLine struct {
	client  string
	exports []string
}

const accessLineMax = 64 << 10

// ReadAccess reads the list from a file.
func ReadAccess(file string) (*Access, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read who may open what: %w", err)
	}
	defer f.Close()
	a, err := parseAccess(f)
	if err != nil {
		return nil, fmt.Errorf("read who may open what: %s: %w", file, err)
	}
	return a, nil
}

func parseAccess(r io.Reader) (*Access, error) {
	a := new(Access)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, accessLineMax)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		switch len(words) {
		case 0:
		case 1:
			return nil, fmt.Errorf("line %d: client %s, but no export", n, words[0])
		default:
			a.lines = append(a.lines, accessLine{words[0], words[1:]})
		}
	}
	return a, lines.Err()
}

// Allows says whether a client may open an export.
func (a *Access) Allows(client, export string) bool {
	for _, l := range a.lines {
		if l.client != "*" && l.client != client {
			continue
		}
		for _, pattern := range l.exports {
			if glob(pattern, export) {
				return true
			}
		}
	}
	return false
}

// named is a client that the list knows by name, "" if it is about anybody alone.
func (a *Access) named() string {
	for _, l := range a.lines {
		if l.client != "*" {
			return l.client
		}
	}
	return ""
}

// authorize is nbd.Config.Authorize.
func (a *Access) authorize(p nbd.Peer, export string) error {
	if client := p.CommonName(); !a.Allows(client, export) {
		if client == "" {
			client = "a client without a certificate"
		}
		return fmt.Errorf("%s may not open export %q: %w", client, export, fs.ErrPermission)
	}
	return nil
}

// glob matches a whole text; * stands for any characters. It never goes back further than to the last star, so its time is bounded by the product of the lengths.
func glob(pattern, text string) bool {
	star, mark, p, t := -1, 0, 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && pattern[p] == text[t]:
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
