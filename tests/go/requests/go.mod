module gotrace.test/requests

go 1.19
