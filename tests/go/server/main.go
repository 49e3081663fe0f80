// server answers one request over HTTP/1.1 and one over HTTP/2 from itself, and prints where the fields of its
// own structures are, as `reflect` has them: one line `name steps…` each. Between two steps a pointer is followed.
package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"unsafe"
)

// field prints where a field is, by the names on the way to it; nothing where there is none.
func field(name string, t reflect.Type, path ...string) {
	steps := []uintptr{0}
	for n, part := range path {
		f, ok := t.FieldByName(part)
		if !ok {
			return
		}
		steps[len(steps)-1] += f.Offset
		t = f.Type
		if t.Kind() == reflect.Ptr && n+1 < len(path) {
			steps = append(steps, 0)
			t = t.Elem()
		}
	}
	fmt.Print(name)
	for _, step := range steps {
		fmt.Print(" ", step)
	}
	fmt.Println()
}

// http2 is the type of a writer of HTTP/2, which Go 1.27 puts into a structure.
func http2(w http.ResponseWriter) (reflect.Type, bool) {
	t := reflect.TypeOf(w)
	if t.Kind() == reflect.Struct {
		t = t.Field(0).Type
	}
	_, ok := t.Elem().FieldByName("rws")
	return t.Elem(), ok
}

func handle(w http.ResponseWriter, r *http.Request) {
	if t, ok := http2(w); ok {
		field("http2.writer.status", t, "rws", "status")
		return
	}
	t := reflect.TypeOf(w).Elem()
	field("http.response.status", t, "status")
	field("http.response.request", t, "req")
	field("http.response.written", t, "written")
}

func get(server *httptest.Server) {
	response, err := server.Client().Get(server.URL + "/things/7")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	response.Body.Close()
}

func main() {
	var r http.Request
	var u url.URL
	t := reflect.TypeOf(r)
	fmt.Println("exported http.request.method", unsafe.Offsetof(r.Method))
	fmt.Println("exported http.request.url.path", unsafe.Offsetof(r.URL), unsafe.Offsetof(u.Path))
	fmt.Println("exported http.request.host", unsafe.Offsetof(r.Host))
	fmt.Println("exported http.request.header", unsafe.Offsetof(r.Header))
	field("http.request.method", t, "Method")
	field("http.request.url.path", t, "URL", "Path")
	field("http.request.host", t, "Host")
	field("http.request.header", t, "Header")
	field("http.request.proto_major", t, "ProtoMajor")
	field("http.request.ctx", t, "ctx")
	if _, ok := t.FieldByName("Pattern"); ok {
		field("http.request.pattern", t, "Pattern")
	} else {
		field("http.request.pattern", t, "pat", "str")
	}

	mux := http.NewServeMux()
	mux.HandleFunc("/things/", handle)
	plain := httptest.NewServer(mux)
	get(plain)
	plain.Close()
	secure := httptest.NewUnstartedServer(mux)
	secure.EnableHTTP2 = true
	secure.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	get(secure)
	secure.Close()
}
