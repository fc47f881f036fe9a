/* The socket to teleport. */
#define _GNU_SOURCE
#include "teleport-pam.h"
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_REPORT = 1 << 10 };

volatile sig_atomic_t ending;

void die(const char *why)
{
	fprintf(stderr, "teleport-pam: %s\n", why);
	exit(EXIT_REFUSED);
}

void write_all(int fd, const void *data, size_t n)
{
	const char *p = data;
	while (n > 0) {
		ssize_t done = write(fd, p, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return;
		p += done;
		n -= (size_t)done;
	}
}

/* report sends one message: its length in four bytes, and the text. */
void report(const char *format, ...)
{
	unsigned char m[4 + MAX_REPORT];
	va_list args;
	va_start(args, format);
	int n = vsnprintf((char *)m + 4, MAX_REPORT, format, args);
	va_end(args);
	if (n < 0)
		return;
	if (n >= MAX_REPORT)
		n = MAX_REPORT - 1;
	m[0] = m[1] = 0;
	m[2] = (unsigned char)(n >> 8);
	m[3] = (unsigned char)n;
	write_all(CONTROL, m, 4 + (size_t)n);
}

/* gone reports whether nobody waits for the session any more. */
int gone(void)
{
	struct pollfd p = {CONTROL, POLLRDHUP, 0};
	return ending || (poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0);
}
