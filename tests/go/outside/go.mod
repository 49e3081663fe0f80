module gotrace.test/outside

go 1.19
