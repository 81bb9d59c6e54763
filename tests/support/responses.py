"""Responses of targets: what is served although it is unusual, and what is malformed."""

from tests.support.gateway import OK

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SERVED = {
    "a length": OK,
    "an empty line first": b"\r\n" + OK,
    "empty lines that end with LF": b"\n\n" + OK,
    "an empty line before each head": b"\r\nHTTP/1.1 100 Continue\r\n\r\n\r\n" + OK,
    "a head that ends with LF": OK.replace(b"\r\n", b"\n"),
    "chunks": CHUNKED + b"1\r\no\r\n1;a=b\r\nk\r\n0\r\nX-Sum: 1\r\n\r\n",
    "chunks whose lines end with LF": CHUNKED + b"1\no\n1;a=b\nk\n0\nX-Sum: 1\n\n",
    "chunks some of whose lines end with LF": CHUNKED + b"1\no\r\n1\r\nk\n0\r\nX-Sum: 1\n\r\n",
    "a chunk of LF": CHUNKED.replace(b"OK", b"A") + b"2\nok\n0\n\n",
    "a length and chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n") + b"2\r\nok\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED.replace(b"OK\r\n", b"OK\r\nContent-Length: 1\r\n") + b"2\r\nok\r\n0\r\n\r\n",
}
NOT_BEGUN = {
    "a folded line": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
    "a control character in a field": b"HTTP/1.1 200 OK\r\nX-A: \x01\r\nContent-Length: 2\r\n\r\nok",
    "a bare CR": b"HTTP/1.1 200 OK\r\nX-A: 1\r2\r\nContent-Length: 2\r\n\r\nok",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a length beyond 63 bits": b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
    "a length of zeros without end": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\nok",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "chunked and another coding": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"2\r\nok\r\n0\r\n\r\n",
    "another version": OK.replace(b"1.1", b"1.2"),
    "HTTP/2": OK.replace(b"1.1", b"2.0"),
    "a status of two digits": OK.replace(b"200", b"20"),
    "a status of four digits": OK.replace(b"200", b"2000"),
    "a status below all": OK.replace(b"200", b"099"),
    "two spaces before the status": OK.replace(b" 200", b"  200"),
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another protocol": b"SSH-2.0-x\r\n",
    "another protocol that waits for us": b"220 ",
    "a space first": b" " + OK,
    "empty lines and another protocol": b"\r\n\r\nsome",
    "a control character in the reason": b"HTTP/1.1 200 O\x07K\r\nContent-Length: 2\r\n\r\nok",
    "a delete in the reason": b"HTTP/1.1 200 O\x7fK\r\nContent-Length: 2\r\n\r\nok",
    "an escape in an interim reason": b"HTTP/1.1 103 \x1b[1m\r\n\r\n" + OK,
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0"),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
    "another coding": CHUNKED.replace(b"chunked", b"gzip"),
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"1" * 70_000,
}
BEGUN = {
    "a chunk size that is none": b"x\r\n",
    "a chunk size that is none, and LF": b"x\n",
    "a chunk size of 17 digits": b"0" * 16 + b"2\r\nok",
    "a chunk that is longer than its size": b"1\r\nok\r\n",
    "a trailer that is no field": b"0\r\nHTTP/1.1 200 OK\r\n\r\n",
    "a line without end": b"2;" + b"a" * 5000,
}
