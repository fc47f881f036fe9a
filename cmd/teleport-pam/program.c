/* The program of a session, and waiting for its end. */
#define _GNU_SOURCE
#include "teleport-pam.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { KILL_AFTER = 3000 }; /* milliseconds that a program may live on when it was hung up */

int std[3] = {-1, -1, -1};

/* close_others closes, or marks as closed at exec, every descriptor from first on. */
void close_others(unsigned first, int at_exec)
{
#ifdef SYS_close_range
	const unsigned close_range_cloexec = 4;
	if (syscall(SYS_close_range, first, ~0U, at_exec ? close_range_cloexec : 0) == 0)
		return;
#endif
	DIR *dir = opendir("/proc/self/fd");
	if (dir == NULL)
		die("cannot look at its descriptors");
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		int fd = atoi(e->d_name);
		if (fd < (int)first || fd == dirfd(dir))
			continue;
		if (at_exec)
			fcntl(fd, F_SETFD, FD_CLOEXEC);
		else
			close(fd);
	}
	closedir(dir);
}

/* become takes the user's ids, for good. The groups are there already. */
static int become(void)
{
	uid_t r, e, s, uid = (uid_t)want.uid;
	gid_t rg, eg, sg, gid = (gid_t)want.gid;
	if (setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0)
		return -1;
	if (getresuid(&r, &e, &s) != 0 || getresgid(&rg, &eg, &sg) != 0 || r != uid || e != uid || s != uid || rg != gid ||
	    eg != gid || sg != gid || (uid != 0 && setuid(0) == 0)) {
		errno = EPERM;
		return -1;
	}
	return 0;
}

/* program is the child: it runs what is wanted as the user, once it is told to go. */
__attribute__((noreturn)) static void program(pid_t parent, int go, int failed, const sigset_t *mask, char **env)
{
	char word;
	int why = 0;
	/* The library keeps two signals for itself and refuses to touch them, but whoever started us may have had them ignored. */
	unsigned long usual[4] = {0};
	for (int sig = 1; sig < NSIG; sig++)
		syscall(SYS_rt_sigaction, sig, usual, NULL, 8UL);
	for (int fd = 0; fd < 3; fd++)
		if (dup2(std[fd], fd) != fd)
			goto out;
	if (setsid() < 0 || (want.terminal && ioctl(0, TIOCSCTTY, 0) != 0) || become() != 0)
		goto out;
	/* What runs in the session does not outlive who holds it. */
	prctl(PR_SET_PDEATHSIG, SIGHUP);
	write_all(failed, &why, sizeof why); /* nothing failed up to here */
	if (getppid() != parent || read(go, &word, 1) != 1)
		_exit(EXIT_REFUSED);
	if (chdir(want.dir) != 0) {
		dprintf(2, "Could not change directory to %s: starting in /\n", want.dir);
		if (chdir("/") != 0)
			goto out;
	}
	close_others(3, 1);
	sigprocmask(SIG_SETMASK, mask, NULL);
	execve(want.path, want.args.at, env);
out:
	why = errno;
	write_all(failed, &why, sizeof why);
	_exit(EXIT_REFUSED);
}

/* start_program returns a child that is the user's and waits for a word on go; why it
 * could not start the program then can be read from failed. */
pid_t start_program(char **env, const sigset_t *mask, int *go, int *failed)
{
	int word[2], why[2], first = EPERM;
	const pid_t self = getpid();
	if (pipe2(word, O_CLOEXEC) != 0 || pipe2(why, O_CLOEXEC) != 0)
		return -1;
	pid_t child = fork();
	if (child == 0) {
		close(word[1]);
		program(self, word[0], why[1], mask, env);
	}
	close(word[0]);
	close(why[1]);
	if (child < 0)
		return -1;
	if (read(why[0], &first, sizeof first) != (ssize_t)sizeof first || first != 0) {
		close(word[1]);
		waitpid(child, NULL, 0);
		errno = first;
		return -1;
	}
	*go = word[1];
	*failed = why[0];
	return child;
}

static long long milliseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* strike signals the program and its group. */
static void strike(pid_t child, int sig)
{
	if (kill(-child, sig) != 0)
		kill(child, sig);
}

/* ended reports how the program ended, once it has. It is not reaped: teleport may
 * still signal its group. */
static int ended(pid_t child, int failed)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	if (waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid != child)
		return 0;
	int why;
	if (read(failed, &why, sizeof why) == (ssize_t)sizeof why)
		report("F %d", why);
	else
		report("E %d %d", info.si_code == CLD_EXITED ? 0 : info.si_code == CLD_DUMPED ? 2 : 1, info.si_status);
	return 1;
}

/* hold returns when the session is over: teleport has closed the socket, or is gone, or
 * we are to end; and the program, if there is one, has ended. */
void hold(pid_t child, int go, int failed, const sigset_t *mask)
{
	int closed = 0, hung = 0, reported = child == 0;
	long long deadline = 0;
	for (;;) {
		if (!reported)
			reported = ended(child, failed);
		if (reported && (closed || (ending && child == 0)))
			return;
		if (!reported && (closed || ending) && !hung) {
			hung = 1;
			deadline = milliseconds() + KILL_AFTER;
			strike(child, SIGHUP);
			strike(child, SIGCONT); /* or a stopped one would not notice */
			if (go >= 0)
				close(go); /* it will not be told to go any more */
			go = -1;
		}
		struct timespec left = {0, 0}, *limit = NULL;
		if (!reported && hung == 1) {
			long long ms = deadline - milliseconds();
			if (ms <= 0) {
				hung = 2;
				strike(child, SIGKILL);
				continue;
			}
			left.tv_sec = ms / 1000;
			left.tv_nsec = ms % 1000 * 1000000;
			limit = &left;
		}
		struct pollfd p = {closed ? -1 : CONTROL, POLLIN, 0};
		if (ppoll(&p, 1, limit, mask) <= 0)
			continue;
		unsigned char word[2];
		ssize_t n = read(CONTROL, word, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			closed = 1;
		} else if (*word == 'G' && go >= 0) {
			write_all(go, "", 1);
			close(go);
			go = -1;
		} else if (*word == 'S' && read(CONTROL, word + 1, 1) == 1 && child != 0) {
			strike(child, word[1]);
		}
	}
}
