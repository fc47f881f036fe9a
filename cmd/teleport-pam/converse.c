/* What modules say to the user, and ask. */
#define _GNU_SOURCE
#include "teleport-pam.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum {
	MAX_MESSAGE = 64 << 10,
	MAX_HELD = 8 << 10,
};

static int asking; /* prompts are answered now */
static int asked;  /* a prompt could not be answered */
static char held[MAX_HELD];
static size_t nheld;

void may_ask(int yes) { asking = yes; }

int could_not_ask(void) { return asked; }

/* tell_held shows what was kept. */
void tell_held(void)
{
	write_all(std[2], held, nheld);
	nheld = 0;
}

/* tell shows a message of a module: at once on a terminal. Elsewhere what is no error
 * would only be in the way of programs, and is kept for the case of a refusal. */
static void tell(const char *text, int error)
{
	size_t n = strnlen(text, MAX_MESSAGE);
	if (want.terminal || error) {
		write_all(std[2], text, n);
		write_all(std[2], "\n", 1);
		return;
	}
	if (n + 1 > MAX_HELD - nheld)
		return;
	memcpy(held + nheld, text, n);
	nheld += n;
	held[nheld++] = '\n';
}

/* prompt asks on the terminal. Ctrl-C, Ctrl-D and the end of the session give up. */
static char *prompt(const char *text, int echo)
{
	struct termios before, now;
	char answer[PAM_MAX_RESP_SIZE];
	size_t n = 0;
	int done = 0;
	if (!want.terminal || !asking || tcgetattr(std[0], &before) != 0) {
		asked = 1;
		return NULL;
	}
	now = before;
	now.c_iflag |= ICRNL;
	now.c_lflag = (now.c_lflag | ICANON) & ~(tcflag_t)ISIG;
	if (!echo)
		now.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
	/* Nobody gets a signal from this terminal yet: the key ends the line. */
	const cc_t interrupt = before.c_cc[VINTR];
	now.c_cc[VEOL] = interrupt;
	if (tcsetattr(std[0], TCSAFLUSH, &now) != 0)
		return NULL;
	write_all(std[1], text, strnlen(text, MAX_MESSAGE));
	while (!done && n < sizeof answer) {
		struct pollfd p[2] = {{std[0], POLLIN, 0}, {CONTROL, POLLRDHUP, 0}};
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (gone())
			break;
		if (p[0].revents == 0)
			continue;
		ssize_t got = read(std[0], answer + n, sizeof answer - n);
		if (got <= 0)
			break;
		n += (size_t)got;
		if (interrupt != _POSIX_VDISABLE && (cc_t)answer[n - 1] == interrupt)
			break;
		done = answer[n - 1] == '\n';
	}
	tcsetattr(std[0], TCSANOW, &before);
	if (!echo || !done)
		write_all(std[1], "\n", 1);
	char *out = NULL;
	if (done) {
		answer[n - 1] = 0;
		out = strdup(answer);
	}
	explicit_bzero(answer, sizeof answer);
	return out;
}

int converse(int n, const struct pam_message **messages, struct pam_response **out, void *unused)
{
	(void)unused;
	if (n <= 0 || n > PAM_MAX_NUM_MSG)
		return PAM_CONV_ERR;
	struct pam_response *answers = calloc((size_t)n, sizeof *answers);
	if (answers == NULL)
		return PAM_BUF_ERR;
	for (int i = 0; i < n; i++) {
		const char *text = messages[i]->msg != NULL ? messages[i]->msg : "";
		int style = messages[i]->msg_style;
		if (style == PAM_TEXT_INFO || style == PAM_ERROR_MSG) {
			tell(text, style == PAM_ERROR_MSG);
			continue;
		}
		if (style == PAM_PROMPT_ECHO_ON || style == PAM_PROMPT_ECHO_OFF)
			answers[i].resp = prompt(text, style == PAM_PROMPT_ECHO_ON);
		if (answers[i].resp != NULL)
			continue;
		for (int j = 0; j < i; j++)
			if (answers[j].resp != NULL) {
				explicit_bzero(answers[j].resp, strlen(answers[j].resp));
				free(answers[j].resp);
			}
		free(answers);
		return PAM_CONV_ERR;
	}
	*out = answers;
	return PAM_SUCCESS;
}
