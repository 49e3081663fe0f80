module gotrace.test/cases

go 1.19
