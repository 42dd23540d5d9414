package sheepdog_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sheepdog-go/sheepdog/"

// floors says which packages of ours a package may import; a name stands for what is below it too. Imports point down only: nbd knows
// nothing of clusters, cluster nothing of VDIs, objstore of nobody. A package that no line names may import nothing of ours.
//
// The first line that fits a package counts.
var floors = []struct {
	packages string
	may      []string
}{
	{"nbd", []string{"nbd"}},
	{"objstore", []string{"objstore"}},

	// The agreed state is pure: what it imports is pure too.
	{"cluster/place", nil},
	{"cluster/planted", nil}, // rules broken on purpose, in test builds alone: whoever keeps a rule may ask
	{"cluster/state", []string{"cluster/place", "cluster/planted"}},

	{"cluster/wire", []string{"cluster/state", "objstore"}},
	{"cluster/replica", []string{"cluster/planted", "cluster/wire", "cluster/state", "objstore"}},
	{"cluster/client", []string{"cluster/planted", "cluster/wire", "cluster/state", "objstore"}},
	{"cluster/consensus", []string{"cluster/wire", "cluster/state"}},
	{"cluster/lease", []string{"cluster/planted", "cluster/wire", "cluster/state"}},
	{"cluster/gossip", []string{"cluster/wire", "cluster/state"}},
	{"cluster/guard", []string{"cluster/wire", "cluster/state"}},
	{"cluster/lead", []string{"cluster/consensus", "cluster/lease", "cluster/gossip", "cluster/wire", "cluster/state"}},
	{"cluster/admin", []string{"cluster/admin", "cluster/state"}},
	{"cluster/node", []string{"cluster/replica", "cluster/client", "cluster/consensus", "cluster/lease", "cluster/gossip", "cluster/guard", "cluster/lead",
		"cluster/wire", "cluster/state", "objstore"}},
	{"cluster", []string{"cluster", "objstore"}},

	{"vdi", []string{"vdi", "nbd", "cluster", "objstore"}},
	{"cmd", []string{"cmd", "vdi", "nbd", "cluster", "objstore"}},
	{"tests/whole", []string{"cluster/admin", "cluster/client", "cluster/wire", "cluster/state"}}, // follows the agreed map, as clients do
	{"tests", []string{"tests", "nbd"}},                                                           // what looks at us from outside
}

// rooms says where else's modules live: only there may they be imported.
var rooms = []struct {
	module string
	in     []string
}{
	{"github.com/urfave/cli", []string{"cmd"}},
	{"github.com/vbauerster/mpb", []string{"cmd"}},
	{"github.com/prometheus/client_golang", []string{"cluster/admin"}},
	{"github.com/mdlayher", []string{"cmd/sheep-nbd"}},
	{"github.com/hashicorp/memberlist", []string{"cluster/gossip"}},
	{"github.com/hashicorp/raft", []string{"cluster/consensus"}},
	{"github.com/pkg/xattr", []string{"objstore", "cluster/node"}}, // a node asks early whether its file system has them
	{"github.com/pojntfx/go-nbd", []string{"nbd", "tests"}},
}

// TestImportsPointDown reads the imports of every file of the module. Tests may look across floors, at what they test through.
func TestImportsPointDown(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			check(t, filepath.ToSlash(name), imported)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Errorf("only %d files seen: the test runs in the wrong directory", files)
	}
}

func check(t *testing.T, file, imported string) {
	pkg := path.Dir(file)
	if ours, ok := strings.CutPrefix(imported, module); ok {
		if !allowed(pkg, ours) {
			t.Errorf("%s imports %s: imports point down only (see floors in deps_test.go)", file, ours)
		}
		return
	}
	for _, r := range rooms {
		if within(imported, r.module) && !anyWithin(pkg, r.in) {
			t.Errorf("%s imports %s, which lives in %v (see rooms in deps_test.go)", file, imported, r.in)
		}
	}
}

func allowed(pkg, imported string) bool {
	for _, f := range floors {
		if within(pkg, f.packages) {
			return anyWithin(imported, f.may)
		}
	}
	return false
}

func anyWithin(pkg string, roots []string) bool {
	for _, r := range roots {
		if within(pkg, r) {
			return true
		}
	}
	return false
}

func within(pkg, root string) bool { return pkg == root || strings.HasPrefix(pkg, root+"/") }

// TestFloorsHaveTeeth: the table refuses what it is there to refuse.
func TestFloorsHaveTeeth(t *testing.T) {
	for _, bad := range [][2]string{{"nbd", "vdi"}, {"objstore", "cluster/state"}, {"cluster/replica", "vdi"}, {"cluster/state", "cluster/wire"},
		{"vdi", "cmd/sheep"}, {"cluster/client", "nbd"}, {"stranger", "nbd"}} {
		if allowed(bad[0], bad[1]) {
			t.Errorf("%s may import %s", bad[0], bad[1])
		}
	}
	for _, good := range [][2]string{{"cmd/sheep-nbd", "vdi"}, {"nbd/nbdtest", "nbd"}, {"cluster/wire", "objstore"}} {
		if !allowed(good[0], good[1]) {
			t.Errorf("%s may not import %s", good[0], good[1])
		}
	}
}
