// Goroutines at every place in libraries that gotrace knows by a plain name: of each pool two goroutines keep all members
// and wait for work, three more wait for a member. Prints READY once all of them stand, and ends with its input. Go.mod
// names new versions of the libraries, old.mod old ones (`go build -modfile=old.mod`).
package main

import (
	"bufio"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

var (
	ctx  = context.Background()
	work = make(chan int) // nothing is ever sent
	keep []any
)

const (
	members = 2
	waiting = 3
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// Those that keep a member first, so that the others find none.
func start(n int, keeps, waits func()) {
	for i := 0; i < n; i++ {
		go keeps()
	}
	time.Sleep(300 * time.Millisecond)
	for i := 0; i < waiting; i++ {
		go waits()
	}
}

// A driver that answers every query with rows without end.
type fake struct{}

func (fake) Connect(context.Context) (driver.Conn, error) { return fake{}, nil }
func (fake) Driver() driver.Driver                        { return nil }
func (fake) Prepare(string) (driver.Stmt, error)          { return fake{}, nil }
func (fake) Close() error                                 { return nil }
func (fake) Begin() (driver.Tx, error)                    { return fake{}, nil }
func (fake) Commit() error                                { return nil }
func (fake) Rollback() error                              { return nil }
func (fake) NumInput() int                                { return 0 }
func (fake) Exec([]driver.Value) (driver.Result, error)   { return nil, errors.New("no exec") }
func (fake) Query([]driver.Value) (driver.Rows, error)    { return fake{}, nil }
func (fake) Columns() []string                            { return []string{"n"} }
func (fake) Next(to []driver.Value) error                 { to[0] = int64(1); return nil }

//go:noinline
func rowsNotClosed(db *sql.DB) {
	// A context that can be cancelled: a goroutine of the library's own waits with each of these.
	cancellable, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := db.QueryContext(cancellable, "select n")
	check(err)
	defer rows.Close()
	<-work
}

//go:noinline
func openTransaction(db *sql.DB) {
	tx, err := db.Begin()
	check(err)
	<-work
	check(tx.Commit())
}

//go:noinline
func wantsConnection(db *sql.DB) {
	rows, err := db.Query("select n")
	check(err)
	check(rows.Close())
}

func databaseSQL() {
	db := sql.OpenDB(fake{})
	db.SetMaxOpenConns(members)
	keep = append(keep, db)
	go openTransaction(db)
	start(1, func() { rowsNotClosed(db) }, func() { wantsConnection(db) })
}

func listen(serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go func() {
		for {
			c, err := l.Accept()
			check(err)
			go serve(c)
		}
	}()
	return l.Addr().String()
}

func silent(c net.Conn) { io.Copy(io.Discard, c) }

// A PostgreSQL server that lets everybody in and answers nothing else.
func postgres(c net.Conn) {
	startup := make([]byte, 4)
	if _, err := io.ReadFull(c, startup); err != nil {
		return
	}
	rest := make([]byte, int(startup[2])<<8+int(startup[3])-4)
	if _, err := io.ReadFull(c, rest); err != nil {
		return
	}
	io.WriteString(c, "R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I")
	silent(c)
}

//go:noinline
func keepsPgx(pool *pgxpool.Pool) {
	c, err := pool.Acquire(ctx)
	check(err)
	<-work
	c.Release()
}

//go:noinline
func wantsPgx(pool *pgxpool.Pool) {
	c, err := pool.Acquire(ctx)
	check(err)
	c.Release()
}

func pgx() {
	config, err := pgxpool.ParseConfig("postgres://u:p@" + listen(postgres) + "/d?sslmode=disable")
	check(err)
	config.MaxConns = members
	pool, err := pgxpool.NewWithConfig(ctx, config)
	check(err)
	keep = append(keep, pool)
	start(members, func() { keepsPgx(pool) }, func() { wantsPgx(pool) })
}

//go:noinline
func keepsRedis(client *redis.Client) { client.Ping(ctx) }

//go:noinline
func wantsRedis(client *redis.Client) { client.Ping(ctx) }

func redisPool() {
	client := redis.NewClient(&redis.Options{
		Addr: listen(silent), PoolSize: members, PoolTimeout: time.Hour, ReadTimeout: -1, WriteTimeout: -1, MaxRetries: -1,
	})
	keep = append(keep, client)
	start(members, func() { keepsRedis(client) }, func() { wantsRedis(client) })
}

// An HTTP server that never ends its body. A client takes an answer that comes before it has asked for an error.
func endless(c net.Conn) {
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		return
	}
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
	silent(c)
}

//go:noinline
func bodyNotRead(client *http.Client, url string) {
	response, err := client.Get(url)
	check(err)
	<-work
	response.Body.Close()
}

//go:noinline
func wantsHTTP(client *http.Client, url string) {
	response, err := client.Get(url)
	check(err)
	response.Body.Close()
}

func httpPool() {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: members}}
	url := "http://" + listen(endless)
	keep = append(keep, client)
	start(members, func() { bodyNotRead(client, url) }, func() { wantsHTTP(client, url) })
}

//go:noinline
func keepsWeight(s *semaphore.Weighted) {
	check(s.Acquire(ctx, 1))
	defer s.Release(1)
	<-work
}

//go:noinline
func wantsWeight(s *semaphore.Weighted) {
	check(s.Acquire(ctx, 1))
	s.Release(1)
}

func weighted() {
	s := semaphore.NewWeighted(members)
	keep = append(keep, s)
	start(members, func() { keepsWeight(s) }, func() { wantsWeight(s) })
}

//go:noinline
func inGroup() error { <-work; return nil }

//go:noinline
func wantsSlot(g *errgroup.Group) { g.Go(inGroup) }

func slots() {
	g := new(errgroup.Group)
	g.SetLimit(members)
	keep = append(keep, g)
	for i := 0; i < members; i++ {
		g.Go(inGroup)
	}
	for i := 0; i < waiting; i++ {
		go wantsSlot(g)
	}
}

//go:noinline
func keepsToken(tokens chan struct{}) {
	tokens <- struct{}{}
	defer func() { <-tokens }()
	<-work
}

//go:noinline
func wantsToken(tokens chan struct{}) {
	tokens <- struct{}{}
	<-tokens
}

func tokens() {
	c := make(chan struct{}, members)
	keep = append(keep, c)
	start(members, func() { keepsToken(c) }, func() { wantsToken(c) })
}

//go:noinline
func limited(l *rate.Limiter) { check(l.Wait(ctx)) }

func limiter() {
	l := rate.NewLimiter(rate.Every(time.Hour), 1)
	l.Allow()
	go limited(l)
}

//go:noinline
func resolves(r *net.Resolver) {
	for {
		r.LookupIPAddr(ctx, "gotrace.test")
	}
}

//go:noinline
func asksServer(r *net.Resolver) {
	for {
		r.LookupTXT(ctx, "gotrace.test")
	}
}

// A resolver whose server is silent.
func dns() {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(err)
	keep = append(keep, server)
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return net.Dial("udp", server.LocalAddr().String())
	}
	r := &net.Resolver{PreferGo: true, Dial: dial}
	go resolves(r)
	go asksServer(r)
}

// One that moves.
func tick() {
	for {
		time.Sleep(20 * time.Millisecond)
	}
}

func main() {
	databaseSQL()
	pgx()
	redisPool()
	httpPool()
	weighted()
	slots()
	tokens()
	limiter()
	dns()
	cgo()
	go tick()
	time.Sleep(300 * time.Millisecond)
	os.Stdout.WriteString("READY\n")
	io.Copy(io.Discard, os.Stdin)
}
