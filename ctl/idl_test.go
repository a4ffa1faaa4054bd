package ctl

import (
	"reflect"
	"testing"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/stretchr/testify/require"
)

// interfaces are the parsed interface descriptions by name.
func interfaces(tb testing.TB) map[string]*varlink.Interface {
	tb.Helper()
	all := map[string]*varlink.Interface{}
	for file, text := range Descriptions() {
		i, err := varlink.ParseInterface(text)
		require.NoError(tb, err, file)
		require.Equal(tb, file, i.Name+".varlink", "a description stands in the file of its name")
		all[i.Name] = i
	}
	return all
}

func TestEveryMethodIsAsItsDescriptionSays(t *testing.T) {
	all := interfaces(t)
	for name, m := range methods {
		t.Run(name, func(t *testing.T) {
			i := all[interfaceOf(name)]
			require.NotNil(t, i, "no interface description has it")
			described := i.Method(name[len(i.Name)+1:])
			require.NotNil(t, described, "its interface description lacks it")
			require.NoError(t, varlink.CheckStruct(i, described.Type, reflect.TypeOf(m.in)), "parameters")
			require.NoError(t, varlink.CheckStruct(i, described.Out, reflect.TypeOf(m.out)), "reply")
		})
	}
}

func TestEveryDescribedMethodIsServed(t *testing.T) {
	var missing []string
	for _, i := range interfaces(t) {
		for _, m := range i.Members {
			if m.Kind != varlink.KindMethod {
				continue
			}
			require.NotEmpty(t, m.Doc, "%s.%s has no comment", i.Name, m.Name)
			if _, ok := methods[i.Name+"."+m.Name]; !ok {
				missing = append(missing, i.Name+"."+m.Name)
			}
		}
	}
	require.Empty(t, missing)
}

func TestTheSharedErrorsAreAsTheirDescriptionSays(t *testing.T) {
	i := interfaces(t)["io.sockd"]
	described := map[string]bool{}
	for _, m := range i.Members {
		require.Equal(t, varlink.KindError, m.Kind, m.Name)
		described[i.Name+"."+m.Name] = true
		require.NoError(t, varlink.CheckStruct(i, m.Type, reflect.TypeFor[WireError]()), m.Name)
	}
	answered := map[string]bool{}
	for _, k := range kinds {
		answered[k.name] = true
	}
	require.Equal(t, described, answered, "the description and the table of errors")
	require.NotContains(t, described, errUnreachable, "it is said by a client that reached nobody")
}
