package varlink

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const shipDescription = `# not about the interface

# Ships, and
#  where they fly.
#
# See also: harbours.
interface org.example-ships.v2 # trailing

# What a ship does.
type State (moored, under_way, sunk)
type Ship (
  # Painted on it.
  name: string, # not about state
  state: State,

  # far from it

  cargo: ?[string](weight: float, kind: (dry, liquid)),
  tags: [string](), crew: []?string, extra: ?object, log: []any
)

# Waits.
# With more: tells of each.
method Watch(name:string) -> ()
`

func TestParseInterface(t *testing.T) {
	text := shipDescription + "method\n Sink ( ship : Ship , when: ?int )\n->\n( ok: bool )\r\nerror Afloat ()"
	i, err := ParseInterface(text)
	require.NoError(t, err)
	require.Equal(t, "org.example-ships.v2", i.Name)
	require.Equal(t, "Ships, and\n where they fly.\n\nSee also: harbours.", i.Doc)
	require.Equal(t, "What a ship does.", i.Members[0].Doc)
	require.Equal(t, "(moored, under_way, sunk)", i.Type("State").String())
	ship := i.Type("Ship")
	require.Equal(t, "Painted on it.", ship.Fields[0].Doc)
	require.Empty(t, ship.Fields[1].Doc, "a comment behind code is about that")
	require.Empty(t, ship.Fields[2].Doc, "an empty line parts them")
	require.Equal(t, "?[string](weight: float, kind: (dry, liquid))", ship.Fields[2].Type.String())
	require.Equal(t, "[string]()", ship.Fields[3].Type.String())
	require.Equal(t, "Waits.\nWith more: tells of each.", i.Method("Watch").Doc)
	require.Equal(t, "method Sink(ship: Ship, when: ?int) -> (ok: bool)", i.Method("Sink").String())
	require.Equal(t, "()", i.ErrorType("Afloat").String())
	require.Nil(t, i.Method("Ship"), "it is a type")
	require.Nil(t, i.Type("Sink"))
	requirePrintsTheSame(t, i)
}

func requirePrintsTheSame(t *testing.T, i *Interface) {
	t.Helper()
	again, err := ParseInterface(i.String())
	require.NoError(t, err, "%s", i)
	require.Equal(t, i, again, "%s", i)
}

func TestParseInterfaceRefuses(t *testing.T) {
	const head = "interface a.b\n"
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "line 1, column 1: want interface"},
		{"no members", head, "line 2, column 1: want a type"},
		{"a name without dot", "interface a\ntype T ()", "column 11: want an interface name"},
		{"a name that ends with a hyphen", "interface a.b-\ntype T ()", "want an interface name"},
		{"a name glued to the keyword", "interfacea.b\ntype T ()", "want interface"},
		{"members on one line", head + "type A () type B ()", "line 2, column 11: want the end of the line"},
		{"a member behind the name", "interface a.b type A ()", "want the end of the line"},
		{"another keyword", head + "signal A ()", "want type, method or error"},
		{"a name in lower case", head + "type a ()", "capital"},
		{"a name with underscore", head + "type A_b ()", "want ("},
		{"an unfinished structure", head + "type A (a: int", "want , or )"},
		{"a comma too many", head + "type A (a: int,)", "want the name of a field"},
		{"a doubled underscore", head + "type A (a__b: int)", "want the name of a field"},
		{"no type", head + "type A (a: )", "want a type"},
		{"an unknown simple type", head + "type A (a: integer)", "want a type"},
		{"optional twice", head + "type A (a: ??int)", "??"},
		{"a map with other keys", head + "type A (a: [int]int)", "want a type"},
		{"half an enumeration", head + "type A (a, b: int)", "b: a structure has types"},
		{"half a structure", head + "type A (a: int, b)", "b: a structure has types"},
		{"a method with an enumeration", head + "method A(a) -> ()", "a: a structure has types"},
		{"a method without output", head + "method A()", "want ->"},
		{"an error with an enumeration", head + "error A (a)", "a structure has types"},
		{"a member twice", head + "type A ()\nerror A ()", "A comes twice"},
		{"a field twice", head + "type A (a: int, a: int)", "field a comes twice"},
		{"a name for nothing", head + "type A (a: []B)", "there is no type B"},
		{"an error for a type", head + "error B ()\ntype A (a: B)", "there is no type B"},
		{"invalid UTF-8", head + "# \xff\ntype A ()", "invalid UTF-8"},
		{"types that nest too deep", head + "type A (a: " + strings.Repeat("[]", 100) + "int)", "deeper than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i, err := ParseInterface(tt.text)
			require.ErrorContains(t, err, tt.want)
			require.Nil(t, i)
		})
	}
}

// What parses prints back and parses to the same.
func FuzzParseInterface(f *testing.F) {
	f.Add(shipDescription)
	f.Add(testDescription)
	f.Add(serviceDescription)
	f.Add("interface a.b\rtype A (a: ?[](b: [string]A, c: (x, y)))\u2028# doc  \n#\n# x\nmethod B\u00a0() -> ()\n")
	f.Add("interface a.b\n" + "type A (" + strings.Repeat("abcdefghij: int, ", 20) + "z: int)\n")
	f.Fuzz(func(t *testing.T, text string) {
		i, err := ParseInterface(text)
		if err != nil {
			require.Nil(t, i)
			return
		}
		requirePrintsTheSame(t, i)
	})
}

type goShip struct {
	Name  string              `json:"name"`
	State string              `json:"state"`
	Cargo map[string]goCargo  `json:"cargo,omitempty"`
	Tags  map[string]struct{} `json:"tags"`
	Crew  []*string           `json:"crew"`
	Extra json.RawMessage     `json:"extra,omitempty"`
	Log   []any               `json:"log"`
}

type goCargo struct {
	Weight float64 `json:"weight"`
	Kind   string  `json:"kind"`
}

func TestCheckStruct(t *testing.T) {
	i, err := ParseInterface(`interface a.b
type Ship (name: string, state: (a, b), cargo: ?[string]Cargo, tags: [string](), crew: []?string, extra: ?object, log: []any)
type Cargo (weight: float, kind: string)
type Tree (value: int, kids: []Tree)
type Times (at: string, took: int, data: string, maybe: ?int)
`)
	require.NoError(t, err)
	type tree struct {
		Value uint16 `json:"value"`
		Kids  []tree `json:"kids"`
	}
	type times struct {
		At    time.Time     `json:"at"`
		Took  time.Duration `json:"took"`
		Data  []byte        `json:"data"`
		Maybe *int          `json:"maybe"`
	}
	type wrong struct {
		At    string `json:"at,omitempty"`
		Took  string `json:"took"`
		Datum []byte `json:"datum"`
		Maybe int    `json:"maybe"`
	}
	for _, tt := range []struct {
		name string
		typ  string
		got  reflect.Type
		want []string // what is reported, line by line
	}{
		{"all kinds", "Ship", reflect.TypeFor[goShip](), nil},
		{"a type that holds itself", "Tree", reflect.TypeFor[*tree](), nil},
		{"times", "Times", reflect.TypeFor[times](), nil},
		{"every difference", "Times", reflect.TypeFor[wrong](), []string{
			"varlink.wrong.at: optional in one of Go (true) and the description (false) only",
			"varlink.wrong.took: Go has string, the description has int",
			"varlink.wrong.data: only the description has it",
			"varlink.wrong.maybe: optional in one of Go (false) and the description (true) only",
			"varlink.wrong.datum: only Go has it",
		}},
		{"another structure", "Cargo", reflect.TypeFor[[]int](), []string{"[]int: Go has []int, the description has (weight: float, kind: string)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckStruct(i, i.Type(tt.typ), tt.got)
			if tt.want == nil {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, strings.Join(tt.want, "\n"))
		})
	}
}

func TestOwnTypesMatchOwnDescription(t *testing.T) {
	i, err := ParseInterface(serviceDescription)
	require.NoError(t, err)
	require.NoError(t, CheckStruct(i, i.Method("GetInfo").Out, reflect.TypeFor[Info]()))
}
