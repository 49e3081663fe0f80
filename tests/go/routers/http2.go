package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

// A handler that is no function.
type answers struct{}

func (answers) ServeHTTP(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status(r)) }

func init() {
	mux := func(at string) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc(at+"/of/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status(r)) })
		mux.Handle(at+"/handler", answers{})
		return mux
	}
	questions := func(at string) []question {
		return []question{
			{"GET", at + "/of/it", pattern(at + "/of/"), 200},
			{"POST", at + "/handler", pattern(at + "/handler"), 418},
			{"GET", at + "/nowhere", "", 404},
		}
	}
	add(server{handler: mux("/h2c"), serve: cleartext, protocol: "http/2", questions: questions("/h2c")})
	add(server{handler: mux("/h2"), serve: secure, protocol: "http/2", questions: questions("/h2")})
}

func cleartext(h http.Handler) (string, *http.Client) {
	url, _ := plain(h2c.NewHandler(h, &http2.Server{}))
	dial := func(_ string, address string, _ *tls.Config) (net.Conn, error) { return net.Dial("tcp", address) }
	return url, &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLS: dial}}
}

// As servers do that want more of HTTP/2 than net/http lets them say.
func secure(h http.Handler) (string, *http.Client) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	s := &http.Server{Handler: h, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
	}}
	must(http2.ConfigureServer(s, &http2.Server{MaxConcurrentStreams: 100}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go s.ServeTLS(l, "", "")
	return "https://" + l.Addr().String(), &http.Client{Transport: &http2.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
}
