package main

import (
	"net/http"

	"github.com/labstack/echo/v5"
)

func init() {
	e := echo.New()
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			c.SetRequest(c.Request().WithContext(c.Request().Context()))
			return next(c)
		}
	})
	handler := func(c *echo.Context) error {
		answer(c.Response(), c.Request(), c.Path())
		return nil
	}
	e.GET("/echo/users/:id", handler)
	e.POST("/echo/users", handler)
	group := e.Group("/echo/group")
	group.GET("/files/*", handler)
	group.GET("/failing", func(c *echo.Context) error { return echo.NewHTTPError(http.StatusTeapot, "") })
	add(server{handler: e, questions: []question{
		{"GET", "/echo/users/17", "/echo/users/:id", 200},
		{"POST", "/echo/users", "/echo/users", 201},
		{"GET", "/echo/group/files/a/b", "/echo/group/files/*", 200},
		{"GET", "/echo/group/failing", "/echo/group/failing", 418},
		{"GET", "/echo/nowhere/17", "", 404},
	}})
}
