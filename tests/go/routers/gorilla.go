package main

import (
	"net/http"

	"github.com/gorilla/mux"
)

func init() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		route, err := mux.CurrentRoute(r).GetPathTemplate()
		must(err)
		answer(w, r, route)
	}
	r := mux.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
	})
	r.HandleFunc("/gorilla/users/{id}", handler).Methods("GET")
	api := r.PathPrefix("/gorilla/api").Subrouter()
	v1 := api.PathPrefix("/v1").Subrouter()
	v1.HandleFunc("/things/{id:[0-9 /]+}/of", handler)
	v1.PathPrefix("/files/").HandlerFunc(handler)
	// Another router behind it.
	below := mux.NewRouter()
	below.HandleFunc("/gorilla/below/{name}", handler)
	r.PathPrefix("/gorilla/below/").Handler(below)
	add(server{handler: r, questions: []question{
		{"GET", "/gorilla/users/17", "/gorilla/users/{id}", 200},
		{"GET", "/gorilla/api/v1/things/17/of", "/gorilla/api/v1/things/{id:[0-9 /]+}/of", 200},
		{"GET", "/gorilla/api/v1/files/a", "/gorilla/api/v1/files/", 206},
		{"GET", "/gorilla/below/x", "/gorilla/below/{name}", 200},
		{"GET", "/gorilla/nowhere", "", 404},
		{"POST", "/gorilla/users/17", "", 405},
	}})
}
