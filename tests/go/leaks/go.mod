module gotrace.test/leaks

go 1.19
