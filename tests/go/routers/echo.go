package main

import (
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
)

func init() {
	e := echo.New()
	e.Use(middleware.Recover(), func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			// As one that is about to pass it on elsewhere.
			c.Request().URL.Path = "/elsewhere" + c.Request().URL.Path
			c.Request().URL.RawPath = ""
			return next(c)
		}
	})
	handler := func(c echo.Context) error {
		answer(c.Response(), c.Request(), c.Path())
		return nil
	}
	e.GET("/echo/users/:id", handler)
	e.POST("/echo/users", handler)
	group := e.Group("/echo/group")
	group.GET("/files/*", handler)
	group.GET("/failing", func(c echo.Context) error { return echo.NewHTTPError(http.StatusTeapot) })
	add(server{handler: e, questions: []question{
		{"GET", "/echo/users/17", "/echo/users/:id", 200},
		{"POST", "/echo/users", "/echo/users", 201},
		{"GET", "/echo/group/files/a/b", "/echo/group/files/*", 200},
		{"GET", "/echo/group/failing", "/echo/group/failing", 418},
		{"GET", "/echo/nowhere/17", "", 404},
		{"GET", "/echo/no%20where/17", "", 404},
	}})
}
