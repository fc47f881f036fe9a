/* What the parts of teleport-pam share: main.c says what the program is for. */
#ifndef TELEPORT_PAM_H
#define TELEPORT_PAM_H

#include <security/pam_appl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/types.h>

/* PROTOCOL is the number of what is said over the socket: internal/pam has the same. */
#define PROTOCOL "1"

enum {
	CONTROL = 3, /* the socket to teleport */
	EXIT_REFUSED = 254,
};

/* list is a growing list of texts that ends with NULL. */
struct list {
	char **at;
	size_t n;
};

/* want is the request. */
extern struct request {
	char mode; /* 's' runs a program, 'h' only holds a session, 'c' only checks */
	int authenticate, terminal;
	const char *service, *user, *tty, *rhost, *ruser, *dir, *path;
	unsigned long uid, gid;
	gid_t *groups;
	size_t ngroups;
	/* env is for the program, hidden for modules, shared for both. */
	struct list args, env, shared, hidden;
} want;

/* std are the program's standard descriptors. */
extern int std[3];

/* ending is set when this process is to end. */
extern volatile sig_atomic_t ending;

/* request.c */
void read_request(void);
int add(struct list *l, char *text);

/* socket.c */
__attribute__((noreturn)) void die(const char *why);
void write_all(int fd, const void *data, size_t n);
__attribute__((format(printf, 1, 2))) void report(const char *format, ...);
int gone(void);

/* converse.c */
int converse(int n, const struct pam_message **messages, struct pam_response **answers, void *unused);
void may_ask(int yes);
int could_not_ask(void);
void tell_held(void);

/* program.c */
void close_others(unsigned first, int at_exec);
pid_t start_program(char **env, const sigset_t *mask, int *go, int *failed);
void hold(pid_t child, int go, int failed, const sigset_t *mask);

#endif
