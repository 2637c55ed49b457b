/*
 * A producer that keeps to its timetable: one transaction per event, each at its own moment, whether earlier ones are late or not.
 *
 *   produce CONNECTION RATE SECONDS THREADS FIRST FILE SQL
 *
 * Executes SQL, prepared, with the event's number as $1 (text), FIRST and up, RATE times a second. Event FIRST + i is due i / RATE seconds
 * after the start; a thread that is late goes on at once, and what it owes is counted from when it was due.
 * FILE gets three 64-bit integers per event: when it was due, when the statement was sent, and when its COMMIT had returned; microseconds
 * since 1970, the clock of the receiver (sink.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

typedef struct Event
{
	int64_t		due, sent, committed;
} Event;

static const char *connection, *sql;
static double rate;
static int64_t first, total, start;
static atomic_llong next;
static Event *events;

static int64_t
now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_REALTIME, &at);
	return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

static void
until(int64_t due)
{
	struct timespec at = {due / 1000000, due % 1000000 * 1000};

	while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &at, NULL) == EINTR)
		;
}

static void
check(PGconn *db, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
	{
		fprintf(stderr, "produce: %s", PQerrorMessage(db));
		exit(1);
	}
	PQclear(result);
}

static void *
produce(void *arg)
{
	PGconn	   *db = PQconnectdb(connection);
	int64_t		i;

	prctl(PR_SET_TIMERSLACK, 1);
	if (PQstatus(db) != CONNECTION_OK)
	{
		fprintf(stderr, "produce: %s", PQerrorMessage(db));
		exit(1);
	}
	check(db, PQprepare(db, "p", sql, 1, NULL));
	pthread_barrier_wait(arg);	/* all are connected: then the timetable is made */
	pthread_barrier_wait(arg);
	while ((i = atomic_fetch_add(&next, 1)) < total)
	{
		char		number[24];
		const char *values[1] = {number};

		snprintf(number, sizeof number, "%lld", (long long) (first + i));
		events[i].due = start + (int64_t) (i * 1e6 / rate);
		until(events[i].due);
		events[i].sent = now();
		check(db, PQexecPrepared(db, "p", 1, values, NULL, NULL, 0));
		events[i].committed = now();
	}
	PQfinish(db);
	return NULL;
}

int
main(int argc, char **argv)
{
	pthread_barrier_t ready;
	pthread_t	thread[256];
	int			threads;
	FILE	   *file;

	if (argc != 8 || (threads = atoi(argv[4])) < 1 || threads > 256)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	connection = argv[1];
	rate = atof(argv[2]);
	total = (int64_t) (rate * atof(argv[3]));
	first = atoll(argv[5]);
	sql = argv[7];
	events = calloc(total, sizeof *events);
	pthread_barrier_init(&ready, NULL, threads + 1);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, produce, &ready) != 0)
			return 1;
	pthread_barrier_wait(&ready);
	start = now() + 20000;
	pthread_barrier_wait(&ready);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	if ((file = fopen(argv[6], "wb")) == NULL || fwrite(events, sizeof *events, total, file) != (size_t) total || fclose(file) != 0)
	{
		perror(argv[6]);
		return 1;
	}
	return 0;
}
