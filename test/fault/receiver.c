/*
 * The receiver of the fault harness: notes every request in its log, on disk, before it answers, and misbehaves as the seed says.
 *
 *   receiver --ready FILE --log FILE --seed N --path NAME,SECRET,PERMILLE… [--effects CONNINFO]
 *
 * Listens on a free port of 127.0.0.1, writes it to the ready file, ends on SIGTERM.  One thread: what is read in one round of the loop is written and
 * synced together, then answered.
 *
 * The log (checker.pm reads it) has two kinds of records; times are microseconds of the Unix clock, taken by this program:
 *   R SEQ BEGAN CONNECTION ACCEPTED PATH ACTION SIGNATURE HEAD BODY\n  and then HEAD bytes of request line and header, BODY bytes, \n
 *     BEGAN: when its first byte was read.  SIGNATURE: valid | invalid.
 *   E SEQ ENDED HOW STATUS\n
 *     ENDED: just before the first byte of the answer was sent, or when the connection was seen to be gone.  HOW: answered | cut (the connection was reset by us)
 *     | gone (by the other side).  STATUS: of what was sent.
 *
 * ACTION: ok | slow (an answer some time later) | lost (accepted, and the connection reset in the answer) are deliveries: what the sender sees of it is its
 * affair.  500 | 503 | 429 (Retry-After: 1) | reset | close | hang are none.  Which one is a function of seed, path, the event (the first of a batch), and how
 * often it was refused before, so that a plan can be run again.  PERMILLE: so many of thousand requests are no "ok".
 *
 * With --effects, a delivery is a row in table effect of that database, behind outbox.accept(), one transaction for all requests of a round; if that
 * transaction fails, the answer is 503.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "session.h"

#define MAX_PATHS 8
#define MAX_REQUEST (4 << 20)
#define MAX_DESCRIPTORS 2048
#define ACTIONS 9

typedef struct Path
{
	char		name[32];
	unsigned char secret[128];
	int			secret_length;
	int			permille;
} Path;

typedef struct Connection
{
	int			fd;
	long		number;
	int64_t		accepted;
	char	   *in;
	size_t		length,
				capacity;
	int64_t		began;			/* of the request in `in` */

	long		seq;			/* of the request that is not answered yet; 0: there is none */
	const char *action;
	int64_t		due;			/* when to answer it; INT64_MAX: never */
	size_t		head,
				body;			/* lengths */
	bool		failed;			/* its effect could not be committed */
} Connection;

typedef struct Refusals
{
	uint64_t	id;				/* hash of the webhook-id; 0: free */
	unsigned	count;
} Refusals;

static Path paths[MAX_PATHS];
static int	path_count;
static uint64_t seed;
static const char *effects;
static PGconn *database;
static int64_t database_tried;

static Connection *connections[MAX_DESCRIPTORS];
static int	epoll_fd;
static int	listener;
static int	log_fd;
static Buffer log_buffer;
static bool must_sync;
static long sequence,
			accepted_count;
static long delivered_requests;
static int64_t newest_connection;	/* of those over which something was delivered: when it was accepted */
static int64_t newest_delivery;
static Refusals *refusals;
static size_t refusals_size = 1 << 16,
			refusals_used;
static volatile sig_atomic_t ended;

static void
end(int signal_number)
{
	(void) signal_number;
	ended = 1;
}

/* How often requests with this id were not "ok" so far, to be counted up. */
static unsigned *
refused(uint64_t id)
{
	size_t		i;

	if (refusals_used * 2 > refusals_size)
	{
		Refusals   *old = refusals;
		size_t		old_size = refusals_size;

		refusals_size *= 2;
		refusals = check_memory(calloc(refusals_size, sizeof(Refusals)));
		for (size_t j = 0; j < old_size; j++)
		{
			if (old[j].id == 0)
				continue;
			for (i = old[j].id & (refusals_size - 1); refusals[i].id != 0; i = (i + 1) & (refusals_size - 1))
				;
			refusals[i] = old[j];
		}
		free(old);
	}
	id |= 1;
	for (i = id & (refusals_size - 1); refusals[i].id != 0 && refusals[i].id != id; i = (i + 1) & (refusals_size - 1))
		;
	if (refusals[i].id == 0)
	{
		refusals[i].id = id;
		refusals_used++;
	}
	return &refusals[i].count;
}

/* The value of a header field, or NULL. */
static const char *
field(const char *head, size_t length, const char *name, size_t *value_length)
{
	size_t		name_length = strlen(name);
	const char *line = memchr(head, '\n', length);

	while (line && (size_t) (++line - head) < length)
	{
		const char *stop = memchr(line, '\n', length - (line - head));

		if (!stop)
			break;
		if ((size_t) (stop - line) > name_length && strncasecmp(line, name, name_length) == 0 && line[name_length] == ':')
		{
			const char *value = line + name_length + 1;

			while (*value == ' ')
				value++;
			*value_length = stop - value - (stop[-1] == '\r');
			return value;
		}
		line = stop;
	}
	return NULL;
}

static bool
signature_is_valid(const Path *path, const char *head, size_t head_length, const char *body, size_t body_length)
{
	size_t		id_length,
				time_length,
				given_length;
	const char *id = field(head, head_length, "webhook-id", &id_length);
	const char *at = field(head, head_length, "webhook-timestamp", &time_length);
	const char *given = field(head, head_length, "webhook-signature", &given_length);
	static Buffer text;
	unsigned char hash[EVP_MAX_MD_SIZE];
	unsigned	hash_length;
	char		expected[4 + EVP_MAX_MD_SIZE * 2] = "v1,";

	if (!id || !at || !given)
		return false;
	text.length = 0;
	append(&text, id, id_length);
	append(&text, ".", 1);
	append(&text, at, time_length);
	append(&text, ".", 1);
	append(&text, body, body_length);
	HMAC(EVP_sha256(), path->secret, path->secret_length, (unsigned char *) text.data, text.length, hash, &hash_length);
	EVP_EncodeBlock((unsigned char *) expected + 3, hash, hash_length);
	return given_length == strlen(expected) && memcmp(given, expected, given_length) == 0;
}

/* The number behind this name in a JSON text that producers have made. */
static uint64_t
number_of(const char *body, size_t length, const char *name)
{
	const char *at = memmem(body, length, name, strlen(name));

	if (!at)
		return 0;
	for (at += strlen(name); at < body + length && (*at == ' ' || *at == ':'); at++)
		;
	return strtoull(at, NULL, 10);
}

static void
decide(Connection *connection, const Path *path)
{
	static const struct
	{
		const char *name;
		int			percent;
	}			actions[ACTIONS] = {{"500", 25}, {"503", 15}, {"429", 4}, {"reset", 14}, {"close", 14}, {"hang", 3}, {"slow", 15}, {"lost", 10}, {NULL, 0}};
	const char *body = connection->in + connection->head;
	size_t		id_length;
	const char *id = field(connection->in, connection->head, "webhook-id", &id_length);
	uint64_t	event = mix(number_of(body, connection->body, "\"p\"") << 40 ^ number_of(body, connection->body, "\"s\""));
	uint64_t	id_hash = id ? hash_of(id, id_length) : 0;
	uint64_t	dice = mix(seed ^ hash_of(path->name, strlen(path->name)) ^ event);
	unsigned   *count;
	int			percent;

	connection->action = "ok";
	connection->due = 0;
	if ((int) (dice % 1000) >= path->permille)
		return;
	count = refused(id_hash);
	if (++*count > 6)
		return;
	dice = mix(dice + *count);
	if (*count > 1 && dice % 4)
		return;
	percent = (int) (mix(dice) % 100);
	for (int i = 0; actions[i].name; i++)
	{
		if ((percent -= actions[i].percent) < 0)
		{
			connection->action = actions[i].name;
			break;
		}
	}
	if (strcmp(connection->action, "slow") == 0)
		connection->due = now() + 5000 + (int64_t) (dice % 400000);
	else if (strcmp(connection->action, "hang") == 0)
		connection->due = INT64_MAX;
}

static bool
delivers(const Connection *connection)
{
	return !connection->failed &&
		(strcmp(connection->action, "ok") == 0 || strcmp(connection->action, "slow") == 0 || strcmp(connection->action, "lost") == 0);
}

static void
drop(Connection *connection, bool reset)
{
	if (reset)
	{
		struct linger linger = {1, 0};

		setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	}
	connections[connection->fd] = NULL;
	close(connection->fd);
	free(connection->in);
	free(connection);
}

static void
note_end(Connection *connection, const char *how, int status)
{
	appendf(&log_buffer, "E %ld %lld %s %d\n", connection->seq, (long long) now(), how, status);
	connection->seq = 0;
}

static void
say(Connection *connection, const char *text, size_t length)
{
	ssize_t		sent = send(connection->fd, text, length, MSG_NOSIGNAL);

	(void) sent;				/* whoever does not read an answer of a hundred bytes is gone, and that is noted when it is seen */
}

static void
answer(Connection *connection)
{
	const char *action = connection->action;
	char		text[256];
	int			status = 0;

	if (connection->failed)
		status = 503;
	else if (delivers(connection))
		status = 200;
	else
		status = atoi(action);

	if (delivers(connection))
	{
		delivered_requests++;
		newest_delivery = connection->began;
		if (connection->accepted > newest_connection)
			newest_connection = connection->accepted;
	}
	if (strcmp(action, "reset") == 0 || strcmp(action, "close") == 0 || (strcmp(action, "lost") == 0 && !connection->failed))
	{
		note_end(connection, "cut", status);
		if (status)
			say(connection, "HTTP/1.1 200 OK\r\nConte", 22);
		drop(connection, strcmp(action, "close") != 0);
		return;
	}
	snprintf(text, sizeof(text), "HTTP/1.1 %d %s\r\n%sContent-Length: 0\r\n\r\n", status, status == 200 ? "OK" : "No", status == 429 ? "Retry-After: 1\r\n" : "");
	note_end(connection, "answered", status);
	say(connection, text, strlen(text));
	connection->length = 0;
}

/* Takes apart what has been read; if it is a whole request, notes it. Returns false if the connection is to be dropped. */
static bool
take(Connection *connection)
{
	char	   *stop = memmem(connection->in, connection->length, "\r\n\r\n", 4);
	size_t		value_length;
	const char *value;
	const Path *path = NULL;
	char		name[32] = "";

	if (connection->seq || !stop)
		return true;
	connection->head = stop + 4 - connection->in;
	if (strncmp(connection->in, "GET /_stats ", 12) == 0)
	{
		char		text[256];
		char		body[128];

		snprintf(body, sizeof(body), "%ld %ld %lld %lld\n", sequence, delivered_requests, (long long) newest_delivery, (long long) newest_connection);
		snprintf(text, sizeof(text), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
		say(connection, text, strlen(text));
		connection->length = 0;
		return true;
	}
	value = field(connection->in, connection->head, "content-length", &value_length);
	connection->body = value ? strtoul(value, NULL, 10) : 0;
	if (connection->head + connection->body > MAX_REQUEST)
		return false;
	if (connection->length < connection->head + connection->body)
		return true;
	sscanf(connection->in, "POST /%31[a-z]", name);
	for (int i = 0; i < path_count; i++)
		if (strcmp(paths[i].name, name) == 0)
			path = &paths[i];
	if (!path)
		return false;

	connection->seq = ++sequence;
	connection->failed = false;
	decide(connection, path);
	appendf(&log_buffer, "R %ld %lld %ld %lld %s %s %s %zu %zu\n", connection->seq, (long long) connection->began, connection->number, (long long) connection->accepted, path->name,
			connection->action, signature_is_valid(path, connection->in, connection->head, connection->in + connection->head, connection->body) ? "valid" : "invalid",
			connection->head, connection->body);
	append(&log_buffer, connection->in, connection->head + connection->body);
	append(&log_buffer, "\n", 1);
	must_sync = true;
	return true;
}

/* Reads what is there.  Of a connection whose other side is gone, that may still be a request: it was made, so it is taken. */
static void
hear(Connection *connection)
{
	for (;;)
	{
		ssize_t		got;

		if (connection->length + 65536 > connection->capacity)
		{
			connection->capacity = connection->length + 131072;
			connection->in = check_memory(realloc(connection->in, connection->capacity));
		}
		got = recv(connection->fd, connection->in + connection->length, connection->capacity - connection->length - 1, 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (got <= 0)
		{
			if (connection->seq)
				note_end(connection, "gone", 0);
			drop(connection, false);
			return;
		}
		if (connection->length == 0)
			connection->began = now();
		connection->length += got;
		connection->in[connection->length] = '\0';
		if (!take(connection))
		{
			drop(connection, true);
			return;
		}
	}
}

static void
greet(void)
{
	for (;;)
	{
		int			fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		int			on = 1;
		struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};

		if (fd < 0)
			return;
		if (fd >= MAX_DESCRIPTORS)
		{
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		connections[fd] = check_memory(calloc(1, sizeof(Connection)));
		connections[fd]->fd = fd;
		connections[fd]->number = ++accepted_count;
		connections[fd]->accepted = now();
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
	}
}

static void
write_log(void)
{
	size_t		done = 0;

	while (done < log_buffer.length)
	{
		ssize_t		written = write(log_fd, log_buffer.data + done, log_buffer.length - done);

		if (written < 0 && errno != EINTR)
			fail("cannot write the log: %s", strerror(errno));
		if (written > 0)
			done += written;
	}
	log_buffer.length = 0;
	if (must_sync && fdatasync(log_fd) != 0)
		fail("cannot sync the log: %s", strerror(errno));
	must_sync = false;
}

static bool
is_to_be_answered(const Connection *connection, int64_t at)
{
	return connection && connection->seq && connection->due <= at;
}

/* What one request asks for, once. */
static bool
effect_of(const Connection *connection)
{
	size_t		length = 0;
	const char *found = field(connection->in, connection->head, "webhook-id", &length);
	char		id[64],
				seq[24];
	char	   *payload = check_memory(strndup(connection->in + connection->head, connection->body));
	const char *values[] = {id, payload, seq};
	PGresult   *result;

	snprintf(id, sizeof(id), "%.*s", (int) length, found);
	snprintf(seq, sizeof(seq), "%ld", connection->seq);
	result = ask(database, "SELECT outbox.accept('effect', $1)", 1, values);
	if (result && PQgetvalue(result, 0, 0)[0] == 't')
	{
		PQclear(result);
		result = ask(database, "INSERT INTO effect (subscription, id, payload, request) VALUES ('effect', $1::uuid, $2::jsonb, $3::bigint)", 3, values);
	}
	PQclear(result);
	free(payload);
	return result != NULL;
}

/* The effects of all that is to be answered now, in one transaction. */
static void
take_effect(int64_t at)
{
	bool		done = false,
				any = false;

	for (int fd = 0; fd < MAX_DESCRIPTORS && !any; fd++)
		any = is_to_be_answered(connections[fd], at) && delivers(connections[fd]);
	if (!any)
		return;
	if (database && is_lost(database))
	{
		PQfinish(database);
		database = NULL;
	}
	if (!database && at - database_tried > 100000)
	{
		database_tried = at;
		database = PQconnectdb(effects);	/* not for long: others wait */
		PQsetNoticeProcessor(database, ignore_notice, NULL);
	}
	if (database && !is_lost(database) && command(database, "BEGIN"))
	{
		done = true;
		for (int fd = 0; fd < MAX_DESCRIPTORS && done; fd++)
			if (is_to_be_answered(connections[fd], at) && delivers(connections[fd]))
				done = effect_of(connections[fd]);
		done = command(database, done ? "COMMIT" : "ROLLBACK") && done;
	}
	for (int fd = 0; fd < MAX_DESCRIPTORS; fd++)
		if (is_to_be_answered(connections[fd], at) && delivers(connections[fd]) && !done)
			connections[fd]->failed = true;
}

static void
start(const char *ready_file)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	length = sizeof(address);
	struct epoll_event event = {.events = EPOLLIN};
	char		temporary[4096];
	FILE	   *ready;

	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *) &address, length) != 0 || listen(listener, 1024) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &length) != 0)
		fail("cannot listen: %s", strerror(errno));
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	event.data.fd = listener;
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
	snprintf(temporary, sizeof(temporary), "%s.new", ready_file);
	ready = fopen(temporary, "w");
	if (!ready || fprintf(ready, "%d\n", ntohs(address.sin_port)) < 0 || fclose(ready) != 0 || rename(temporary, ready_file) != 0)
		fail("cannot write %s: %s", ready_file, strerror(errno));
}

static void
add_path(char *text)
{
	Path	   *path = &paths[path_count++];
	char	   *secret = strchr(text, ','),
			   *permille = secret ? strchr(secret + 1, ',') : NULL;
	size_t		length;

	if (!permille || path_count > MAX_PATHS)
		fail("--path NAME,SECRET,PERMILLE");
	*secret++ = *permille++ = '\0';
	snprintf(path->name, sizeof(path->name), "%s", text);
	secret += strncmp(secret, "whsec_", 6) == 0 ? 6 : 0;
	length = strlen(secret);
	if (length > 128 || length % 4 != 0 || length == 0)
		fail("this is no secret: %s", secret);
	path->secret_length = EVP_DecodeBlock(path->secret, (unsigned char *) secret, (int) length) - (secret[length - 1] == '=') - (secret[length - 2] == '=');
	path->permille = atoi(permille);
}

int
main(int argc, char **argv)
{
	const char *ready_file = NULL,
			   *log_file = NULL;
	static struct epoll_event events[4096];

	for (int i = 1; i + 1 < argc; i += 2)
	{
		if (strcmp(argv[i], "--ready") == 0)
			ready_file = argv[i + 1];
		else if (strcmp(argv[i], "--log") == 0)
			log_file = argv[i + 1];
		else if (strcmp(argv[i], "--seed") == 0)
			seed = mix(strtoull(argv[i + 1], NULL, 10));
		else if (strcmp(argv[i], "--path") == 0)
			add_path(argv[i + 1]);
		else if (strcmp(argv[i], "--effects") == 0)
			effects = argv[i + 1];
		else
			fail("what is %s?", argv[i]);
	}
	if (!ready_file || !log_file || path_count == 0)
		fail("receiver --ready FILE --log FILE --seed N --path NAME,SECRET,PERMILLE... [--effects CONNINFO]");
	refusals = check_memory(calloc(refusals_size, sizeof(Refusals)));
	log_fd = open(log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (log_fd < 0)
		fail("cannot open %s: %s", log_file, strerror(errno));
	signal(SIGTERM, end);
	signal(SIGINT, end);
	signal(SIGPIPE, SIG_IGN);
	start(ready_file);

	while (!ended)
	{
		int64_t		at = now(),
					next = at + 1000000;
		int			count;

		for (int fd = 0; fd < MAX_DESCRIPTORS; fd++)
			if (connections[fd] && connections[fd]->seq && connections[fd]->due < next)
				next = connections[fd]->due;
		count = epoll_wait(epoll_fd, events, 4096, next > at ? (int) ((next - at) / 1000 + 1) : 0);
		/* Those that have hung up first: what is then read was sent after that */
		for (int pass = 0; pass < 2; pass++)
			for (int i = 0; i < count; i++)
			{
				bool		hung_up = (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
				Connection *connection = events[i].data.fd == listener ? NULL : connections[events[i].data.fd];

				if (hung_up == (pass == 0) && connection)
					hear(connection);
			}
		greet();
		write_log();
		at = now();
		if (effects)
			take_effect(at);
		for (int fd = 0; fd < MAX_DESCRIPTORS; fd++)
			if (is_to_be_answered(connections[fd], at))
				answer(connections[fd]);
		write_log();			/* the ends: no need to wait for the disk */
	}
	return 0;
}
