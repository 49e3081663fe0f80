// grpcserver serves gRPC by its own transport, by a pool of workers and over net/http, calls itself, and records spans. It
// tells of each call and span what it was and where its time went. It obeys lines:
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
	"io"
	"net"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

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

// A span around another, on a goroutine of their own; the last one ends on another goroutine than it began.
func spans(tracer trace.Tracer) []*own {
	var all []*own
	span := func(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span, *own) {
		o := &own{Kind: name, Protocol: "otel", Path: name, Ended: "normal", Goid: goid(), Phases: map[string]int64{}}
		all = append(all, o)
		in, span := tracer.Start(ctx, name, trace.WithSpanKind(kind))
		if above := trace.SpanContextFromContext(ctx); above.IsValid() {
			o.ParentID = above.SpanID().String()
		}
		o.TraceID, o.SpanID = span.SpanContext().TraceID().String(), span.SpanContext().SpanID().String()
		return in, span, o
	}
	done := make(chan struct{})
	go func() {
		ctx, outer, _ := span(context.Background(), "outer", trace.SpanKindServer)
		_, inner, o := span(ctx, "inner", trace.SpanKindInternal)
		sleeps(o, wait)
		inner.End()
		outer.End()
		_, moved, o := span(context.Background(), "moved", trace.SpanKindConsumer)
		sleeps(o, wait)
		go func() {
			moved.End()
			close(done)
		}()
	}()
	<-done
	return all
}

func say(line interface{}) {
	text, err := json.Marshal(line)
	must(err)
	os.Stdout.Write(append(text, '\n'))
}

func main() {
	calls.byID = map[string]*own{}
	ended := new(exporter)
	tracer := sdk.NewTracerProvider(sdk.WithSyncer(ended)).Tracer("grpcserver")
	native, pool, over := serve(), serve(grpc.NumStreamWorkers(2)), serveHTTP()
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
					all = append(all, spans(tracer)...)
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
				if o.SpanID == span.SpanContext().SpanID().String() {
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
