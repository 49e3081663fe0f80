module gotrace.test/account

go 1.19
