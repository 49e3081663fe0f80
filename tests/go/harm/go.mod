module gotrace.test/harm

go 1.19
