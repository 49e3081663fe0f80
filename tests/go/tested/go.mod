module gotrace.test/tested

go 1.19
