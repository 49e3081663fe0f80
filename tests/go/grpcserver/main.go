// grpcserver serves gRPC by its own transport, by a pool of workers and over net/http, and net/http, calls itself, and records
// spans. It tells of each call, and of each span that is a request, what it was and where its time went. It obeys lines:
//
//	run N KIND…   makes N calls or spans of each kind; then a line of JSON for each, then {"done":…}
//
// It ends with its standard input.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	otelcodes "go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// What the program knows of one of its calls or spans.
type own struct {
	Kind     string           `json:"kind"`
	Protocol string           `json:"protocol"`
	Method   string           `json:"method"`
	Path     string           `json:"path"`
	Route    string           `json:"route"`
	Status   uint32           `json:"status"`
	Ended    string           `json:"ended"`
	Goid     uint64           `json:"goid"`
	Start    int64            `json:"start_unix_nano"`
	Total    int64            `json:"total_ns"`
	Phases   map[string]int64 `json:"phases"`
	TraceID  string           `json:"trace_id"`
	SpanID   string           `json:"span_id"`
	ParentID string           `json:"parent_span_id"`

	done chan struct{}
}

func (o *own) add(phase string, begin time.Time) { o.Phases[phase] += int64(time.Since(begin)) }

// How long a handler waits.
const wait = 5 * time.Millisecond

//go:noinline
func sleeps(o *own, d time.Duration) {
	begin := time.Now()
	time.Sleep(d)
	o.add("wait", begin)
}

// The number of the goroutine that asks.
func goid() uint64 {
	var buffer [64]byte
	text := string(buffer[:runtime.Stack(buffer[:], false)])
	n, _ := strconv.ParseUint(strings.Fields(text)[1], 10, 64)
	return n
}

var tracer trace.Tracer

var calls struct {
	sync.Mutex
	byID map[string]*own
}

func of(ctx context.Context) *own {
	md, _ := metadata.FromIncomingContext(ctx)
	calls.Lock()
	defer calls.Unlock()
	return calls.byID[md.Get("x-id")[0]]
}

// Keeps the account of a handler.
func accounted(ctx context.Context, handler func(*own) error) error {
	begin := time.Now()
	o := of(ctx)
	o.Start, o.Goid = begin.UnixNano(), goid()
	err := handler(o)
	// What the client sees is another code where it was late first.
	o.Status = uint32(status.Code(err))
	o.Total = int64(time.Since(begin))
	close(o.done)
	return err
}

//go:noinline
func staysUntilLate(ctx context.Context, o *own) {
	begin := time.Now()
	<-ctx.Done()
	o.add("wait", begin)
}

func call(_ interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
	in := new(emptypb.Empty)
	if err := decode(in); err != nil {
		return nil, err
	}
	return in, accounted(ctx, func(o *own) error {
		switch o.Kind {
		case "late":
			staysUntilLate(ctx, o)
			return status.FromContextError(ctx.Err()).Err()
		case "missing":
			sleeps(o, wait)
			return status.Error(codes.NotFound, "on purpose")
		case "spanned":
			parent := remote(int(time.Now().UnixNano() & (1<<48 - 1)))
			_, serving := tracer.Start(parent, "Call", trace.WithSpanKind(trace.SpanKindServer))
			o.is(parent, serving)
			defer serving.End()
		}
		sleeps(o, wait)
		return nil
	})
}

// Answers three times, with a pause before each.
func talk(_ interface{}, stream grpc.ServerStream) error {
	return accounted(stream.Context(), func(o *own) error {
		in := new(emptypb.Empty)
		begin := time.Now()
		if err := stream.RecvMsg(in); err != nil {
			return err
		}
		o.add("receiving", begin)
		for i := 0; i < 3; i++ {
			sleeps(o, wait)
			if err := stream.SendMsg(in); err != nil {
				return err
			}
		}
		return nil
	})
}

var service = grpc.ServiceDesc{
	ServiceName: "gotrace.test.Calls",
	HandlerType: (*interface{})(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Call", Handler: call}},
	Streams:     []grpc.StreamDesc{{StreamName: "Talk", Handler: talk, ServerStreams: true, ClientStreams: true}},
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func dial(address string, secure credentials.TransportCredentials) *grpc.ClientConn {
	conn, err := grpc.Dial(address, grpc.WithTransportCredentials(secure))
	must(err)
	return conn
}

func serve(options ...grpc.ServerOption) *grpc.ClientConn {
	server := grpc.NewServer(options...)
	server.RegisterService(&service, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go server.Serve(listener)
	return dial(listener.Addr().String(), insecure.NewCredentials())
}

// Over the HTTP/2 server of net/http.
func serveHTTP() *grpc.ClientConn {
	server := grpc.NewServer()
	server.RegisterService(&service, nil)
	over := httptest.NewUnstartedServer(server)
	over.EnableHTTP2 = true
	over.StartTLS()
	return dial(over.Listener.Addr().String(), credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}))
}

// An error where a call did not end as it is to.
func fails(err error, missing bool) error {
	if missing && status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// Makes one call, and waits until its handler is done.
func ask(conn *grpc.ClientConn, kind string, id string) *own {
	o := &own{Kind: kind, Protocol: "grpc", Path: "/gotrace.test.Calls/Call", Ended: "normal", Phases: map[string]int64{}, done: make(chan struct{})}
	if kind == "stream" {
		o.Path = "/gotrace.test.Calls/Talk"
	}
	o.Route = o.Path
	calls.Lock()
	calls.byID[id] = o
	calls.Unlock()
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-id", id)
	if kind == "late" {
		late, cancel := context.WithTimeout(ctx, 3*wait)
		defer cancel()
		ctx = late
	}
	message := new(emptypb.Empty)
	var err error
	if kind == "stream" {
		var stream grpc.ClientStream
		stream, err = conn.NewStream(ctx, &service.Streams[0], o.Path)
		must(err)
		must(stream.SendMsg(message))
		must(stream.CloseSend())
		for err == nil {
			err = stream.RecvMsg(message)
		}
		if err == io.EOF {
			err = nil
		}
	} else {
		err = conn.Invoke(ctx, o.Path, message, message)
	}
	if kind != "late" {
		must(fails(err, kind == "missing"))
	}
	<-o.done
	return o
}

// Takes spans that have ended.
type exporter struct {
	sync.Mutex
	spans []sdk.ReadOnlySpan
}

func (e *exporter) ExportSpans(_ context.Context, spans []sdk.ReadOnlySpan) error {
	e.Lock()
	e.spans = append(e.spans, spans...)
	e.Unlock()
	return nil
}

func (e *exporter) Shutdown(context.Context) error { return nil }

// A span, and what is known of it.
func span(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span, *own) {
	o := &own{Kind: name, Protocol: "otel", Path: name, Route: name, Ended: "normal", Goid: goid(), Phases: map[string]int64{}}
	in, span := tracer.Start(ctx, name, trace.WithSpanKind(kind))
	o.is(ctx, span)
	return in, span, o
}

// Takes the ids of a span.
func (o *own) is(ctx context.Context, span trace.Span) {
	o.ParentID = ""
	if above := trace.SpanContextFromContext(ctx); above.IsValid() {
		o.ParentID = above.SpanID().String()
	}
	o.TraceID, o.SpanID = span.SpanContext().TraceID().String(), span.SpanContext().SpanID().String()
}

// A context with a parent in another program, by the digits of a number.
func remote(n int) context.Context {
	traceID, err := trace.TraceIDFromHex(fmt.Sprintf("abcd%028x", n))
	must(err)
	spanID, err := trace.SpanIDFromHex(fmt.Sprintf("ef%014x", n))
	must(err)
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.FlagsSampled, Remote: true})
	return trace.ContextWithRemoteSpanContext(context.Background(), parent)
}

// Spans of a goroutine that serves nothing else: those that are requests are told.
func spans(id int) []*own {
	var all []*own
	done := make(chan struct{})
	go func() {
		defer close(done)
		begin := func(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span) {
			in, span, o := span(ctx, name, kind)
			all = append(all, o)
			sleeps(o, wait)
			return in, span
		}
		// What is beneath it is a part of it.
		ctx, outer := begin(context.Background(), "outer", trace.SpanKindServer)
		_, inner, _ := span(ctx, "inner", trace.SpanKindInternal)
		_, served, _ := span(ctx, "served", trace.SpanKindServer)
		served.End()
		inner.End()
		outer.End()
		outer.End()
		_, client, _ := span(context.Background(), "client", trace.SpanKindClient)
		client.End()
		_, consumer := begin(remote(id), "remote", trace.SpanKindConsumer)
		consumer.End()
		_, job := begin(context.Background(), "job", trace.SpanKindInternal)
		job.SetName("renamed")
		all[len(all)-1].Route = "renamed"
		job.End()
		_, failing := begin(context.Background(), "fails", trace.SpanKindServer)
		failing.SetStatus(otelcodes.Error, "on purpose")
		all[len(all)-1].Status = 1
		failing.End()
		_, moved := begin(context.Background(), "moved", trace.SpanKindConsumer)
		all[len(all)-1].Ended = "other_goroutine"
		ended := make(chan struct{})
		go func() {
			moved.End()
			close(ended)
		}()
		<-ended
	}()
	<-done
	return all
}

// A span whose goroutine is gone when it ends: no request.
func left() {
	begun := make(chan trace.Span)
	go func() {
		_, span, _ := span(context.Background(), "left", trace.SpanKindConsumer)
		begun <- span
	}()
	span := <-begun
	time.Sleep(wait)
	span.End()
}

// A request of net/http with a span of its own.
func web(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	id := r.Header.Get("x-id")
	calls.Lock()
	o := calls.byID[id]
	calls.Unlock()
	o.Start, o.Goid = begin.UnixNano(), goid()
	n, err := strconv.Atoi(id)
	must(err)
	parent := remote(n)
	ctx, serving := tracer.Start(parent, "GET /web", trace.WithSpanKind(trace.SpanKindServer))
	o.is(parent, serving)
	_, inner, _ := span(ctx, "inner", trace.SpanKindServer)
	sleeps(o, wait)
	inner.End()
	serving.End()
	o.Total = int64(time.Since(begin))
	close(o.done)
}

func browse(address, id string) *own {
	o := &own{Kind: "web", Protocol: "http/1.1", Method: "GET", Path: "/web", Status: 200, Ended: "normal", Phases: map[string]int64{}, done: make(chan struct{})}
	if _, told := reflect.TypeOf(http.Request{}).FieldByName("Pattern"); told {
		o.Route = "/web"
	}
	calls.Lock()
	calls.byID[id] = o
	calls.Unlock()
	request, err := http.NewRequest("GET", address+"/web", nil)
	must(err)
	request.Header.Set("x-id", id)
	answer, err := http.DefaultClient.Do(request)
	must(err)
	answer.Body.Close()
	<-o.done
	return o
}

func say(line interface{}) {
	text, err := json.Marshal(line)
	must(err)
	os.Stdout.Write(append(text, '\n'))
}

func main() {
	calls.byID = map[string]*own{}
	ended := new(exporter)
	tracer = sdk.NewTracerProvider(sdk.WithSyncer(ended)).Tracer("grpcserver")
	native, pool, over := serve(), serve(grpc.NumStreamWorkers(2)), serveHTTP()
	mux := http.NewServeMux()
	mux.HandleFunc("/web", web)
	site := httptest.NewServer(mux)
	say(map[string]interface{}{"ready": true, "go_version": runtime.Version(), "grpc_version": grpc.Version})
	in := bufio.NewScanner(os.Stdin)
	id := 0
	for in.Scan() {
		words := strings.Fields(in.Text())
		n, err := strconv.Atoi(words[1])
		must(err)
		var all []*own
		for _, kind := range words[2:] {
			for i := 0; i < n; i++ {
				id++
				switch kind {
				case "spans":
					all = append(all, spans(id)...)
				case "left":
					left()
				case "web":
					all = append(all, browse(site.URL, strconv.Itoa(id)))
				case "pooled":
					all = append(all, ask(pool, kind, strconv.Itoa(id)))
				case "handled":
					all = append(all, ask(over, kind, strconv.Itoa(id)))
				default:
					all = append(all, ask(native, kind, strconv.Itoa(id)))
				}
			}
		}
		// What spans took is theirs to tell.
		ended.Lock()
		for _, span := range ended.spans {
			for _, o := range all {
				if o.Protocol == "otel" && o.SpanID == span.SpanContext().SpanID().String() {
					o.Start, o.Total = span.StartTime().UnixNano(), int64(span.EndTime().Sub(span.StartTime()))
				}
			}
		}
		ended.spans = nil
		ended.Unlock()
		for _, o := range all {
			say(o)
		}
		say(map[string]interface{}{"done": len(all)})
	}
}
