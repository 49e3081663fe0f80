module gotrace.test/web

go 1.19
