package main

import (
	"reflect"
	"strings"
	"sync/atomic"
	"unicode"
)

// countersOf adds the atomic and plain integers of a struct of counters to all, by names like engine_write_bytes.
func countersOf(all map[string]uint64, prefix string, stats any) {
	v := reflect.Indirect(reflect.ValueOf(stats))
	if v.Kind() != reflect.Struct {
		return
	}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() {
			continue
		}
		if n, ok := integer(v.Field(i)); ok {
			all[prefix+"_"+snake(field.Name)] += n
		}
	}
}

func integer(v reflect.Value) (uint64, bool) {
	if v.CanAddr() {
		switch n := v.Addr().Interface().(type) {
		case *atomic.Int64:
			return uint64(max(n.Load(), 0)), true
		case *atomic.Uint64:
			return n.Load(), true
		}
	}
	switch {
	case v.CanInt():
		return uint64(max(v.Int(), 0)), true
	case v.CanUint():
		return v.Uint(), true
	}
	return 0, false
}

// snake turns WriteBytes into write_bytes.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) {
			if i > 0 {
				b.WriteByte('_')
			}
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}
