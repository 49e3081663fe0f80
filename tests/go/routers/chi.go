package main

import (
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

func init() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		// Without a slash at the end, as newer versions have it.
		answer(w, r, strings.TrimRight(chi.RouteContext(r.Context()).RoutePattern(), "/"))
	}
	things := chi.NewRouter()
	things.Get("/", handler)
	things.Get("/{id:[0-9]+}", handler)
	files := chi.NewRouter()
	files.Use(middleware.NoCache)
	files.Get("/*", handler)
	api := chi.NewRouter()
	api.Mount("/things", things)
	api.Mount("/files", files)
	mux := http.NewServeMux()
	mux.HandleFunc("/chi/mux/of/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status(r)) })
	r := chi.NewRouter()
	r.Use(middleware.RealIP)
	r.Mount("/chi/api/v1", api)
	r.Mount("/chi/mux", mux)
	r.Route("/chi/users", func(r chi.Router) {
		r.Group(func(r chi.Router) {
			r.Get("/{user}", handler)
			r.With(middleware.NoCache).Post("/", handler)
		})
	})
	inner := "/chi/mux/*"
	if patterns {
		inner = "/chi/mux/of/"
	}
	add(server{handler: r, questions: []question{
		{"GET", "/chi/users/gopher", "/chi/users/{user}", 200},
		{"POST", "/chi/users/", "/chi/users", 201},
		{"GET", "/chi/api/v1/things/17", "/chi/api/v1/things/{id:[0-9]+}", 200},
		{"GET", "/chi/api/v1/things/", "/chi/api/v1/things", 202},
		{"GET", "/chi/api/v1/files/a/b", "/chi/api/v1/files/*", 200},
		{"GET", "/chi/mux/of/it", inner, 200},
		{"GET", "/chi/api/v1/things/seventeen", "", 404},
		{"DELETE", "/chi/users/gopher", "", 405},
		{"GET", "/chi/nowhere", "", 404},
	}})
}
