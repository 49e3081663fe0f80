module gotrace.test/mapped

go 1.19
