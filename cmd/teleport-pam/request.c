/* The request: what teleport asks for. */
#define _GNU_SOURCE
#include "teleport-pam.h"
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	MAX_REQUEST = 4 << 20,
	MAX_RECORDS = 70000, /* the groups that a user may have, and some more */
};

struct request want;

/* read_all reads exactly n bytes of the request. */
static void read_all(void *data, size_t n)
{
	char *p = data;
	while (n > 0) {
		ssize_t got = read(CONTROL, p, n);
		if (got < 0 && errno == EINTR && !ending)
			continue;
		if (got <= 0)
			die("the request is cut off");
		p += got;
		n -= (size_t)got;
	}
}

static unsigned long number(const char *text)
{
	char *end;
	errno = 0;
	unsigned long n = strtoul(text, &end, 10);
	/* The last is what the kernel takes for "no change". */
	if (*text < '0' || *text > '9' || *end != 0 || errno != 0 || n >= UINT32_MAX)
		die("the request has a number that is none");
	return n;
}

/* add puts a text at the end of a list. */
int add(struct list *l, char *text)
{
	if (l->at == NULL && (l->at = calloc(MAX_RECORDS + 1, sizeof *l->at)) == NULL)
		return -1;
	if (l->n == MAX_RECORDS)
		return -1;
	l->at[l->n++] = text;
	return 0;
}

static void keep(struct list *l, char *text)
{
	if (add(l, text) != 0)
		die("out of memory");
}

/* record takes one record of the request: a letter, and a text. */
static void record(char *r)
{
	char *text = r + 1;
	switch (*r) {
	case 'v':
		if (strcmp(text, PROTOCOL) != 0)
			die("it is of another release than teleport");
		return;
	case 'm':
		want.mode = *text;
		return;
	case 'a':
		want.authenticate = 1;
		return;
	case 'i':
		want.terminal = 1;
		return;
	case 'S':
		want.service = text;
		return;
	case 'U':
		want.user = text;
		return;
	case 't':
		want.tty = text;
		return;
	case 'r':
		want.rhost = text;
		return;
	case 'R':
		want.ruser = text;
		return;
	case 'd':
		want.dir = text;
		return;
	case 'p':
		want.path = text;
		return;
	case 'u':
		want.uid = number(text);
		return;
	case 'g':
		want.gid = number(text);
		return;
	case 'G':
		if (want.groups == NULL && (want.groups = calloc(MAX_RECORDS, sizeof *want.groups)) == NULL)
			die("out of memory");
		want.groups[want.ngroups++] = (gid_t)number(text);
		return;
	case 'A':
		keep(&want.args, text);
		return;
	case 'e':
	case 'E':
	case 'H':
		if (strchr(text, '=') == NULL || *text == '=')
			die("the request has a malformed variable");
		keep(*r == 'e' ? &want.env : *r == 'E' ? &want.shared : &want.hidden, text);
		return;
	}
	die("the request has an unknown record: it is of another release than teleport");
}

/* read_request reads the request: records that each end with a zero byte. */
void read_request(void)
{
	unsigned char head[4];
	read_all(head, sizeof head);
	size_t n = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
	if (n == 0 || n > MAX_REQUEST)
		die("the request is too long");
	char *text = malloc(n);
	if (text == NULL)
		die("out of memory");
	read_all(text, n);
	if (text[n - 1] != 0)
		die("the request is cut off");
	want.uid = want.gid = UINT32_MAX;
	size_t records = 0;
	for (char *r = text; r < text + n; r += strlen(r) + 1) {
		if (++records > MAX_RECORDS)
			die("the request has too many records");
		if (*r == 0)
			die("the request has an empty record");
		record(r);
	}
	if (want.service == NULL || want.user == NULL || want.tty == NULL || want.rhost == NULL || want.ruser == NULL ||
	    want.mode == 0 || strchr("shc", want.mode) == NULL)
		die("the request is incomplete");
	if (want.mode != 'c' && (want.uid == UINT32_MAX || want.gid == UINT32_MAX || want.ngroups == 0))
		die("the request has no ids");
	if (want.mode == 's' && (want.path == NULL || *want.path != '/' || want.dir == NULL || want.args.n == 0))
		die("the request has no program");
}
