package consensus

import (
	"reflect"
	"strings"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// orderName says what a command orders, for messages: the name of the one pointer that is set.
func orderName(cmd *state.Command) string {
	v := reflect.ValueOf(cmd).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			return strings.ToLower(v.Type().Field(i).Name)
		}
	}
	return "nothing"
}
