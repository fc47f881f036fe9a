/*
 * teleport-pam puts a session of the SSH Service into a PAM session.
 *
 * teleport is a static program and cannot load PAM's modules, so it starts this one, as
 * root, for each session of a host where PAM is enabled. It is told what to do by one
 * message on descriptor 3, a socket pair whose other end is held by its parent, and by
 * nothing else: no argument, no variable, no file of its own. internal/pam is the other
 * side, and says what goes over the socket.
 *
 *   pam_start, items, variables      service, user, terminal, where from, who
 *   pam_authenticate                 if it is asked for
 *   pam_acct_mgmt                    a check ends here
 *   setgroups, pam_setcred           groups first: modules may add to them
 *   pam_open_session
 *   fork                             the child takes the user's ids and runs the program;
 *                                    this process waits, and holds the session
 *   pam_close_session, pam_setcred
 *
 * The end of file on the socket means that teleport is gone, however it went: then the
 * program is hung up, and the session is closed all the same.
 */
#define _GNU_SOURCE
#include "teleport-pam.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static pam_handle_t *pamh;

/* The signals that end this process in order. */
static const int ends[] = {SIGTERM, SIGHUP, SIGINT, SIGQUIT};

static void note_ending(int sig) { (void)sig; ending = 1; }
static void note_nothing(int sig) { (void)sig; }

static void handle(int sig, void (*handler)(int))
{
	struct sigaction a;
	memset(&a, 0, sizeof a);
	a.sa_handler = handler;
	sigaction(sig, &a, NULL);
}

/* prepare makes sure who asks, and forgets everything that it was not told by request. */
static void prepare(void)
{
	uid_t r, e, s;
	struct ucred peer;
	socklen_t n = sizeof peer;
	if (getauxval(AT_SECURE) != 0 || getresuid(&r, &e, &s) != 0 || r != 0 || e != 0 || s != 0)
		die("it must not be setuid: it is started by teleport, which runs as root");
	if (getsockopt(CONTROL, SOL_SOCKET, SO_PEERCRED, &peer, &n) != 0 || n != sizeof peer || peer.uid != 0 || peer.pid != getppid())
		die("it is started by teleport, and does nothing by hand");
	close_others(CONTROL + 1, 0);
	fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			die("cannot open /dev/null");
	if (clearenv() != 0 || setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1) != 0 || chdir("/") != 0)
		die("cannot clear its surroundings");
	/* It may see a password: nobody gets its memory, also not as a core dump. */
	prctl(PR_SET_DUMPABLE, 0);
	prctl(PR_SET_NAME, "teleport-pam");
	/* Handlers, and not "ignore", which the programs of modules would inherit. */
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	handle(SIGCHLD, SIG_DFL);
	handle(SIGPIPE, note_nothing);
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
		handle(ends[i], note_ending);
}

/* refuse ends it all with PAM's reason. */
__attribute__((noreturn)) static void refuse(const char *stage, int code)
{
	if (want.mode != 'c')
		tell_held();
	report("X %d %s %d %s", code, stage, could_not_ask(), pamh != NULL ? pam_strerror(pamh, code) : "cannot start");
	if (pamh != NULL)
		pam_end(pamh, code);
	exit(EXIT_REFUSED);
}

/* must goes on after success only. A module may not make the user another one, and
 * nothing is begun for a client that has left. */
static void must(const char *stage, int code)
{
	const void *user = NULL;
	if (code == PAM_SUCCESS && (pam_get_item(pamh, PAM_USER, &user) != PAM_SUCCESS || user == NULL || strcmp(user, want.user) != 0))
		code = PAM_USER_UNKNOWN;
	if (code == PAM_SUCCESS && gone())
		code = PAM_ABORT;
	if (code != PAM_SUCCESS)
		refuse(stage, code);
}

static void put(const char *variable)
{
	must("start", pam_putenv(pamh, variable));
	if (putenv((char *)variable) != 0) /* for modules that look there */
		refuse("start", PAM_BUF_ERR);
}

static void close_session(int established)
{
	pam_close_session(pamh, 0);
	if (established)
		pam_setcred(pamh, PAM_DELETE_CRED);
	pam_end(pamh, PAM_SUCCESS);
}

/* open_session does everything up to the session, and reports whether there are
 * credentials to delete. */
static int open_session(void)
{
	static const struct pam_conv conversation = {converse, NULL};
	int code = pam_start(want.service, want.user, &conversation, &pamh);
	if (code != PAM_SUCCESS) {
		pamh = NULL;
		refuse("start", code);
	}
	must("start", pam_set_item(pamh, PAM_TTY, want.tty));
	must("start", pam_set_item(pamh, PAM_RHOST, want.rhost));
	must("start", pam_set_item(pamh, PAM_RUSER, want.ruser));
	for (size_t i = 0; i < want.shared.n; i++)
		put(want.shared.at[i]);
	for (size_t i = 0; i < want.hidden.n; i++)
		put(want.hidden.at[i]);
	if (want.authenticate) {
		may_ask(1);
		must("auth", pam_authenticate(pamh, PAM_DISALLOW_NULL_AUTHTOK));
		may_ask(0);
	}
	must("account", pam_acct_mgmt(pamh, 0));
	if (want.mode == 'c') {
		pam_end(pamh, PAM_SUCCESS);
		report("O");
		exit(0);
	}
	/* Modules that decide know who asks. Those of sessions (pam_namespace) take the name for
	 * that of a local user. */
	must("start", pam_set_item(pamh, PAM_RUSER, NULL));
	if (setgroups(want.ngroups, want.groups) != 0)
		refuse("groups", PAM_SYSTEM_ERR);
	/* Modules that authenticated nobody may have nothing to establish. */
	code = pam_setcred(pamh, PAM_ESTABLISH_CRED);
	if (want.authenticate && code != PAM_SUCCESS)
		refuse("credentials", code);
	int established = code == PAM_SUCCESS;
	code = gone() ? PAM_ABORT : pam_open_session(pamh, 0);
	if (code != PAM_SUCCESS && established)
		pam_setcred(pamh, PAM_DELETE_CRED);
	if (code != PAM_SUCCESS)
		refuse("session", code);
	const void *user = NULL;
	if (gone() || pam_get_item(pamh, PAM_USER, &user) != PAM_SUCCESS || user == NULL || strcmp(user, want.user) != 0) {
		report("X %d session 0 the session cannot be used", PAM_ABORT);
		close_session(established);
		exit(EXIT_REFUSED);
	}
	return established;
}

static int same_name(const char *a, const char *b)
{
	size_t n = strcspn(a, "=");
	return strncmp(a, b, n + 1) == 0;
}

static int named(const struct list *l, const char *variable)
{
	for (size_t i = 0; i < l->n; i++)
		if (same_name(l->at[i], variable))
			return 1;
	return 0;
}

/* environment is that of the program: what the request says, and over it what modules
 * and the configuration set. */
static char **environment(void)
{
	struct list all = {NULL, 0}, of_pam = {pam_getenvlist(pamh), 0};
	if (of_pam.at == NULL)
		return NULL;
	while (of_pam.at[of_pam.n] != NULL)
		of_pam.n++;
	for (size_t i = 0; i < want.env.n; i++)
		if (!named(&of_pam, want.env.at[i]) && add(&all, want.env.at[i]) != 0)
			return NULL;
	for (size_t i = 0; i < of_pam.n; i++)
		if (!named(&want.hidden, of_pam.at[i]) && add(&all, of_pam.at[i]) != 0)
			return NULL;
	static char *none[1];
	return all.at != NULL ? all.at : none;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--protocol") == 0) {
		puts("teleport-pam " PROTOCOL);
		return 0;
	}
	prepare();
	read_request();
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; fd < 3; fd++) {
		std[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 10);
		/* Where programs read the output, modules and what they run do not get in between. */
		if (null < 0 || std[fd] < 0 || (!want.terminal && dup2(null, fd) != fd))
			die("cannot arrange its descriptors");
	}
	int established = open_session();

	sigset_t waited, mask;
	sigemptyset(&waited);
	sigaddset(&waited, SIGCHLD);
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
		sigaddset(&waited, ends[i]);
	sigprocmask(SIG_BLOCK, &waited, &mask); /* they arrive while we wait for more */
	handle(SIGCHLD, note_nothing);
	int go = -1, failed = -1, status = 0;
	pid_t child = 0;
	if (want.mode == 's') {
		char **env = environment();
		child = env != NULL ? start_program(env, &mask, &go, &failed) : -1;
		if (child < 0) {
			report("F %d", env != NULL ? errno : ENOMEM);
			close_session(established);
			return EXIT_REFUSED;
		}
		report("P %d", (int)child);
	} else {
		report("O");
	}
	/* The terminal, or the pipes, are the program's alone. */
	for (int fd = 0; fd < 3; fd++) {
		dup2(null, fd);
		close(std[fd]);
		std[fd] = null;
	}
	hold(child, go, failed, &mask);
	if (child != 0)
		waitpid(child, &status, 0);
	handle(SIGCHLD, SIG_DFL);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	close_session(established);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
