module gotrace.test/contention

go 1.19
