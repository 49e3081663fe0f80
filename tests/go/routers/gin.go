package main

import (
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

func init() {
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultWriter = io.Discard
	handler := func(c *gin.Context) { answer(c.Writer, c.Request, c.FullPath()) }
	routes := func() *gin.Engine {
		e := gin.New()
		e.Use(gin.RecoveryWithWriter(io.Discard), func(c *gin.Context) { c.Next() })
		e.GET("/gin/users/:id", handler)
		e.POST("/gin/users", handler)
		group := e.Group("/gin/group", func(c *gin.Context) {
			c.Request = c.Request.WithContext(c.Request.Context())
			c.Next()
		})
		group.GET("/files/*path", handler)
		group.GET("/failing", func(c *gin.Context) { panic("on purpose") })
		return e
	}
	questions := []question{
		{"GET", "/gin/users/17", "/gin/users/:id", 200},
		{"GET", "/gin/users/4", "/gin/users/:id", 418},
		{"POST", "/gin/users", "/gin/users", 201},
		{"GET", "/gin/group/files/a/b", "/gin/group/files/*path", 200},
		{"GET", "/gin/group/failing", "/gin/group/failing", 500},
		{"GET", "/gin/nowhere/17", "", 404},
		{"PUT", "/gin/nowhere", "", 404},
	}
	add(server{handler: routes(), questions: questions})

	// Within a ServeMux, and around one.
	mux := http.NewServeMux()
	mux.Handle("/gin/", routes())
	mux.HandleFunc("/plain/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status(r)) })
	add(server{handler: mux, questions: append([]question{
		{"GET", "/plain/17", pattern("/plain/"), 200},
	}, questions[:5]...)})
	e := gin.New()
	e.Any("/plain/*any", gin.WrapH(mux))
	e.GET("/batch/:id", func(c *gin.Context) {
		inside(routes(), "/gin/users/2", "/gin/users/:id")
		handler(c)
	})
	inner := "/plain/*any"
	if patterns {
		inner = "/plain/"
	}
	add(server{handler: e, questions: []question{
		{"GET", "/plain/18", inner, 202},
		{"GET", "/batch/3", "/batch/:id", 200},
	}})

	// On a goroutine of its own.
	slow := routes()
	slow.GET("/late/:id", func(c *gin.Context) {
		<-c.Request.Context().Done()
		time.Sleep(100 * time.Millisecond)
	})
	add(server{handler: http.TimeoutHandler(slow, time.Minute, ""), questions: elsewhere(questions[:4]), elsewhere: true})
	add(server{handler: http.TimeoutHandler(slow, 5*time.Millisecond, ""), questions: []question{
		// It is given up before its router is done.
		{"GET", "/late/17", "", 503},
	}})
}
