// rpc serves one gRPC call and ends one span, and prints where the fields of its own structures are, as `reflect`
// has them: one line `name steps…` each. Between two steps a pointer is followed.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"reflect"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
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

type service struct{ *health.Server }

func (s service) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	stream := reflect.TypeOf(grpc.ServerTransportStreamFromContext(ctx)).Elem()
	if _, embedded := stream.FieldByName("Stream"); embedded {
		field("grpc.stream.method", stream, "Stream", "method")
	} else {
		field("grpc.stream.method", stream, "method")
	}
	field("grpc.stream.transport", stream, "st")
	return s.Server.Check(ctx, r)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, service{health.NewServer()})
	go server.Serve(listener)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	ctx, span := sdk.NewTracerProvider().Tracer("rpc").Start(context.Background(), "call")
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	must(err)
	span.End()
	t := reflect.TypeOf(span).Elem()
	field("otel.span.trace_id", t, "spanContext", "traceID")
	field("otel.span.span_id", t, "spanContext", "spanID")
	field("otel.span.parent_trace_id", t, "parent", "traceID")
	field("otel.span.parent_span_id", t, "parent", "spanID")
	field("otel.span.parent_remote", t, "parent", "remote")
	field("otel.span.kind", t, "spanKind")
	field("otel.span.status", t, "status", "Code")
	field("otel.span.name", t, "name")
	field("otel.span.start_time", t, "startTime")
	field("grpc.status.code", reflect.TypeOf(status.Status{}), "s", "Code")
	server.Stop()
}
