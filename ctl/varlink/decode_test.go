package varlink

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type inner struct {
	Name string `json:"name"`
	Next *inner `json:"next"`
}

type common struct {
	ID int `json:"id"`
}

type everything struct {
	common
	Bool     bool             `json:"bool,omitempty"`
	Small    int8             `json:"small,omitempty"`
	Unsigned uint64           `json:"unsigned,omitempty"`
	Float    float64          `json:"float,omitempty"`
	Data     []byte           `json:"data,omitempty"`
	Time     time.Time        `json:"time,omitzero"`
	Timeout  *time.Duration   `json:"timeout"`
	List     []inner          `json:"list,omitempty"`
	Pointers []*int           `json:"pointers,omitempty"`
	Map      map[string]inner `json:"map,omitempty"`
	Raw      json.RawMessage  `json:"raw,omitempty"`
	Any      any              `json:"any,omitempty"`
	Hidden   string           `json:"-"`
	private  string
}

func TestDecode(t *testing.T) {
	second := time.Second
	one := 1
	for _, tt := range []struct {
		name string
		in   string
		want everything
	}{
		{"what is required alone", `{"id":1}`, everything{common: common{1}}},
		{"null for what is optional", `{"id":1,"bool":null,"timeout":null,"list":null,"raw":null}`, everything{common: common{1}}},
		{"simple values", `{"id":-9223372036854775808,"bool":true,"small":-128,"unsigned":18446744073709551615,"float":1e3}`,
			everything{common: common{-1 << 63}, Bool: true, Small: -128, Unsigned: 1<<64 - 1, Float: 1000}},
		{"values with a form of their own", `{"id":1,"data":"aGk=","time":"2026-11-23T01:02:03Z","timeout":1000000000}`,
			everything{common: common{1}, Data: []byte("hi"), Time: time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC), Timeout: &second}},
		{"lists and maps", ` { "id" : 1 , "list" : [ { "name" : "a" , "next" : { "name" : "b" } } ] , "map" : { "x.y" : { "name" : "}]" } } } `,
			everything{common: common{1}, List: []inner{{"a", &inner{Name: "b"}}}, Map: map[string]inner{"x.y": {Name: "}]"}}}},
		{"null in a list of optionals", `{"id":1,"pointers":[1,null]}`, everything{common: common{1}, Pointers: []*int{&one, nil}}},
		{"foreign objects", `{"id":1,"raw":{"a":[1,"\""]},"any":[true]}`,
			everything{common: common{1}, Raw: rawJSON(`{"a":[1,"\""]}`), Any: []any{true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got everything
			require.NoError(t, Decode(rawJSON(tt.in), &got))
			require.Equal(t, tt.want, got)
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, parameter, why string }{
		{"nothing", ``, "id", "is missing"},
		{"an unknown field", `{"id":1,"other":2}`, "other", "is unknown"},
		{"a field in other case", `{"ID":1}`, "ID", "is unknown"},
		{"a Go name", `{"id":1,"Hidden":"x"}`, "Hidden", "is unknown"},
		{"a private field", `{"id":1,"private":"x"}`, "private", "is unknown"},
		{"null for what is required", `{"id":null}`, "id", "is null"},
		{"another type", `{"id":"1"}`, "id", "does not fit"},
		{"a fraction", `{"id":1.0}`, "id", "does not fit"},
		{"an exponent", `{"id":1e0}`, "id", "does not fit"},
		{"a number too large", `{"id":1,"small":128}`, "small", "does not fit"},
		{"a negative one for unsigned", `{"id":1,"unsigned":-1}`, "unsigned", "does not fit"},
		{"no base64", `{"id":1,"data":"?"}`, "data", "does not fit"},
		{"no time", `{"id":1,"time":"noon"}`, "time", "does not fit"},
		{"an object for a list", `{"id":1,"list":{}}`, "list", "is not an array"},
		{"a list for an object", `{"id":1,"map":[]}`, "map", "is not an object"},
		{"null in a list", `{"id":1,"list":[null]}`, "list[0]", "is null"},
		{"deep inside a list", `{"id":1,"list":[{"name":"a"},{"name":"b","next":{"nam":1}}]}`, "list[1].next.nam", "is unknown"},
		{"deep inside a map", `{"id":1,"map":{"k":{}}}`, "map.k.name", "is missing"},
		{"a field twice", `{"id":1,"id":1}`, "parameters", "comes twice"},
		{"a field twice, once escaped", `{"id":1,"\u0069d":1}`, "parameters", "comes twice"},
		{"a key of a map twice", `{"id":1,"map":{"a":{"name":""},"a":{"name":""}}}`, "map", "comes twice"},
		{"a list", `[]`, "parameters", "is not an object"},
		{"null", `null`, "parameters", "is null"},
		{"no JSON", `{"id":1`, "parameters", "invalid JSON"},
		{"bytes behind it", `{"id":1} 2`, "parameters", "invalid JSON"},
		{"invalid UTF-8", "{\"id\":1,\"raw\":\"\xff\"}", "parameters", "invalid UTF-8"},
		{"half a surrogate", `{"id":1,"any":"\udc00"}`, "parameters", "surrogate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := everything{common: common{42}, private: "kept"}
			got := before
			err := Decode(rawJSON(tt.in), &got)
			var invalid *InvalidParameterError
			require.ErrorAs(t, err, &invalid)
			require.Equal(t, tt.parameter, invalid.Parameter)
			require.Contains(t, invalid.Why, tt.why)
			require.Equal(t, before, got, "an error must leave it alone")
		})
	}
}

func TestDecodeWantsAPointer(t *testing.T) {
	require.ErrorContains(t, Decode(nil, everything{}), "want a pointer")
	require.ErrorContains(t, Decode(nil, (*everything)(nil)), "want a pointer")
}

func TestSurrogates(t *testing.T) {
	for text, lone := range map[string]bool{
		`"\ud83d\ude00"`: false, `"\\ud800"`: false, `"\\\ud800"`: true, `"\ud800x"`: true,
		`"\ud800\n"`: true, `"\ud800\ud800"`: true, `"\ude00\ud83d"`: true, `"\uD83D\uDE00 \u00e4"`: false, `"\ud83d"`: true,
	} {
		require.Equal(t, lone, hasLoneSurrogate([]byte(text)), text)
	}
}

// What is not nullable must not become null only because Go has a nil list.
func TestEncodeHasNoNulls(t *testing.T) {
	type item struct {
		List  []string       `json:"list"`
		Map   map[string]int `json:"map"`
		Maybe []string       `json:"maybe,omitempty"`
		Next  *item          `json:"next,omitempty"`
		Items []item         `json:"items"`
		When  time.Time      `json:"when,omitzero"`
	}
	v := item{Next: &item{Items: []item{{}}}}
	raw, err := encodeParameters(v)
	require.NoError(t, err)
	require.Equal(t, `{"list":[],"map":{},"next":{"list":[],"map":{},"items":[{"list":[],"map":{},"items":[]}]},"items":[]}`, string(raw))
	require.Nil(t, v.List, "the caller's value must stay as it is")
	require.Nil(t, v.Next.Items[0].List)

	raw, err = encodeParameters(map[string]any{"all": []item(nil), "one": &item{}})
	require.NoError(t, err)
	require.Equal(t, `{"all":[],"one":{"list":[],"map":{},"items":[]}}`, string(raw))
}

func TestEncodeParameters(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   any
		want string
		err  string
	}{
		{"nil", nil, "", ""},
		{"an empty struct", struct{}{}, "", ""},
		{"a nil pointer", (*inner)(nil), "", ""},
		{"raw", rawJSON(` {"a":1} `), `{"a":1}`, ""},
		{"raw null", rawJSON(`null`), "", ""},
		{"no HTML", map[string]string{"a": "<&>"}, `{"a":"<&>"}`, ""},
		{"a list", []int{1}, "", "not an object"},
		{"raw nonsense", rawJSON(`{`), "", "not JSON"},
		{"what has no JSON", map[string]any{"a": make(chan int)}, "", "unsupported type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := encodeParameters(tt.in)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
		})
	}
}

// What parses as a call prints as one that parses to the same.
func FuzzParseCall(f *testing.F) {
	for _, seed := range []string{
		`{"method":"a.b.C"}`, `{"method":"a.b.C","parameters":{"x":[1,{"y":"\ud83d\ude00"}]},"more":true}`,
		`{"method":"a.b.C","oneway":true,"org.example":{}}`, ` { "method" : "a-b.c--d.E1" , "upgrade" : false } `,
		`{"method":"a.b.C","method":"a.b.C"}`, `{}`, `[]`, `"`, ``, `{"method":"\u0061.b.C"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCall(text)
		if err != nil {
			require.Nil(t, c)
			require.IsType(t, &MalformedError{}, err)
			return
		}
		printed, err := c.Text()
		require.NoError(t, err)
		again, err := ParseCall(printed)
		require.NoError(t, err)
		if c.Parameters != nil {
			require.JSONEq(t, string(c.Parameters), string(again.Parameters))
		}
		again.Parameters = c.Parameters
		require.Equal(t, c, again)
	})
}

// What parses as a reply prints as one that parses to the same.
func FuzzParseReply(f *testing.F) {
	for _, seed := range []string{`{}`, `{"parameters":{"a":1},"continues":true}`, `{"error":"a.b.C"}`, `{"error":"a.b.C","continues":true}`, `{"error":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseReply(text)
		if err != nil {
			require.Nil(t, r)
			return
		}
		printed, err := r.Text()
		require.NoError(t, err)
		again, err := ParseReply(printed)
		require.NoError(t, err)
		require.Equal(t, r.Error, again.Error)
		require.Equal(t, r.Continues, again.Continues)
	})
}

// What decodes is encoded to parameters that decode to the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"id":1,"list":[{"name":"a","next":{"name":"b"}}],"map":{"k":{"name":""}},"timeout":5}`))
	f.Add([]byte(`{"id":1,"id":2}`))
	f.Add([]byte(`{"id":1,"raw":{"a":[]},"any":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var v everything
		if Decode(raw, &v) != nil {
			require.Equal(t, everything{}, v)
			return
		}
		encoded, err := encodeParameters(v)
		require.NoError(t, err)
		var again everything
		require.NoError(t, Decode(encoded, &again), "%s", encoded)
		v.Raw, again.Raw = nil, nil // compacted
		first, err := marshal(v)
		require.NoError(t, err)
		second, err := marshal(again)
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(string(first)), string(second))
	})
}
