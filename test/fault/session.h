/* A session that comes back: for the fault harness's clients of the server. */
#ifndef FAULT_SESSION_H
#define FAULT_SESSION_H

#include <stdbool.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "tools.h"

static inline void
ignore_notice(void *unused, const char *message)
{
	(void) unused;
	(void) message;
}

static inline bool
is_lost(const PGconn *session)
{
	return PQstatus(session) != CONNECTION_OK;
}

/* Tries again until there is a connection, for two minutes. */
static inline PGconn *
connect_to(const char *conninfo)
{
	int64_t		began = now();

	for (;;)
	{
		PGconn	   *session = PQconnectdb(conninfo);

		PQsetNoticeProcessor(session, ignore_notice, NULL);
		if (!is_lost(session))
			return session;
		if (now() - began > 120 * 1000000LL)
			fail("no connection for two minutes: %s", PQerrorMessage(session));
		PQfinish(session);
		usleep(50000);
	}
}

/*
 * The result of a statement, or NULL if it failed.  Conflicts (40), states of objects (55: locks, stale tokens), whatever ends a session (57) and errors at fault points are part of the plan;
 * anything else is a mistake of somebody's, and said.
 */
static inline PGresult *
ask(PGconn *session, const char *statement, int count, const char *const *values)
{
	PGresult   *result = PQexecParams(session, statement, count, NULL, values, NULL, NULL, 0);
	ExecStatusType status = PQresultStatus(result);
	const char *state;

	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return result;
	state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	if (!is_lost(session) && state && strncmp(state, "40", 2) != 0 && strncmp(state, "55", 2) != 0 && strncmp(state, "57", 2) != 0 &&
		!strstr(PQresultErrorMessage(result), "fault at point"))
		fprintf(stderr, "mistake: %s: %s", statement, PQresultErrorMessage(result));
	PQclear(result);
	return NULL;
}

static inline bool
command(PGconn *session, const char *statement)
{
	PGresult   *result = ask(session, statement, 0, NULL);

	PQclear(result);
	return result != NULL;
}

#endif
