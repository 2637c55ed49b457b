/*
 * Every setting of outbox, in one place.
 *
 * Settings are read where they are needed and never copied, so that a reload takes effect at the next use.
 */
#include "postgres.h"

#include <limits.h>

#include "datatype/timestamp.h"
#include "settings.h"
#include "utils/guc.h"

PGDLLEXPORT bool outbox_enabled = true;
PGDLLEXPORT char *outbox_armed = NULL;
PGDLLEXPORT bool outbox_auto_maintain = true;
PGDLLEXPORT int outbox_maintenance_interval = 10;
PGDLLEXPORT int outbox_max_payload = 1024;
PGDLLEXPORT int outbox_event_retention = 3 * SECS_PER_DAY;
PGDLLEXPORT int outbox_attempt_retention = 3 * SECS_PER_DAY;
PGDLLEXPORT int outbox_dead_letter_retention = 30 * SECS_PER_DAY;
PGDLLEXPORT int outbox_max_backlog_age = 14 * SECS_PER_DAY;
PGDLLEXPORT int outbox_max_backlog_size = 0;
PGDLLEXPORT int outbox_dedup_window = SECS_PER_DAY;
PGDLLEXPORT int outbox_segment_size = 1024 * 1024;
PGDLLEXPORT int outbox_segment_age = 0;
PGDLLEXPORT int outbox_attempt_log = OUTBOX_ATTEMPTS_ALL;
PGDLLEXPORT int outbox_max_in_flight = 512;
PGDLLEXPORT int outbox_max_in_flight_per_tenant = 50;
PGDLLEXPORT int outbox_inbox_retention = 7 * SECS_PER_DAY;
PGDLLEXPORT int outbox_request_retention = SECS_PER_DAY;
PGDLLEXPORT int outbox_request_lease = 60;
PGDLLEXPORT int outbox_max_response = 1024;
PGDLLEXPORT char *outbox_source = NULL;
PGDLLEXPORT char *outbox_secret_key_file = NULL;
PGDLLEXPORT char *outbox_traceparent = NULL;
PGDLLEXPORT int outbox_max_databases = 16;
PGDLLEXPORT int outbox_max_subscriptions = 10000;
PGDLLEXPORT int outbox_max_subscriptions_per_tenant = 50;

static const struct config_enum_entry attempt_logs[] = {
	{"all", OUTBOX_ATTEMPTS_ALL, false},
	{"failures", OUTBOX_ATTEMPTS_FAILURES, false},
	{"none", OUTBOX_ATTEMPTS_NONE, false},
	{NULL, 0, false}
};

/* The source becomes an HTTP field and a URI-reference: RFC 3986 knows visible ASCII only. */
static bool
check_source(char **value, void **extra, GucSource source)
{
	for (const char *c = *value; *c; c++)
	{
		if (*c <= ' ' || *c > '~' || strchr("\"<>\\^`{|}", *c) != NULL)
		{
			GUC_check_errdetail("A URI reference has no spaces, control characters, non-ASCII characters or any of \"<>\\^`{|}.");
			return false;
		}
	}
	return true;
}

/* A relative path would lead into the data directory, which is where keys must not be.  Whether the file is fit is seen when it is read. */
static bool
check_key_file(char **value, void **extra, GucSource source)
{
	if ((*value)[0] == '\0' || is_absolute_path(*value))
		return true;
	GUC_check_errdetail("The path must be absolute, and lead out of the data directory.");
	return false;
}

static void
define_switches(void)
{
	DefineCustomBoolVariable("outbox.enabled",
							 "Permits delivery workers on this server.",
							 "When off, nothing is delivered, whatever is armed. Events are still recorded.",
							 &outbox_enabled, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("outbox.armed",
							   "Epoch that outbox.start() armed in this database.",
							   "Set by outbox.start(), reset by outbox.stop(). Counts only as a setting of the database.",
							   &outbox_armed, "",
							   PGC_SUSET, GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	DefineCustomBoolVariable("outbox.auto_maintain",
							 "Lets the delivery worker run outbox.maintain() by itself.",
							 NULL,
							 &outbox_auto_maintain, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.maintenance_interval",
							"Time between two rounds of maintenance by the delivery worker.",
							NULL,
							&outbox_maintenance_interval, 10, 1, SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static void
define_retention(void)
{
	DefineCustomIntVariable("outbox.event_retention",
							"Time that events stay readable after they were enqueued.",
							NULL,
							&outbox_event_retention, 3 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.attempt_retention",
							"Time that delivery attempts stay in the attempt log.",
							NULL,
							&outbox_attempt_retention, 3 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.dead_letter_retention",
							"Time that dead letters are kept.",
							NULL,
							&outbox_dead_letter_retention, 30 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_backlog_age",
							"Age beyond which a subscription gives up events that it has not got to yet.",
							"Counts whole segments of the log that are full, and only time in which delivery was running. Zero means any age.",
							&outbox_max_backlog_age, 14 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_backlog_size",
							"Size of the event log that a subscription may hold back before it gives up its oldest events.",
							"Counts whole segments of the log that are full and past outbox.event_retention. Zero means any size.",
							&outbox_max_backlog_size, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.dedup_window",
							"Time for which a dedup_key stands for the first event enqueued with it.",
							NULL,
							&outbox_dedup_window, SECS_PER_DAY, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.segment_size",
							"Size of a segment of the event log beyond which the next one is used.",
							NULL,
							&outbox_segment_size, 1024 * 1024, 8, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.segment_age",
							"Age of a segment of the event log beyond which the next one is used.",
							"Zero means a twelfth of outbox.event_retention.",
							&outbox_segment_age, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomEnumVariable("outbox.attempt_log",
							 "Selects the delivery attempts that are logged.",
							 NULL,
							 &outbox_attempt_log, OUTBOX_ATTEMPTS_ALL, attempt_logs,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
}

static void
define_receiving(void)
{
	DefineCustomIntVariable("outbox.inbox_retention",
							"Time that accepted message ids are remembered at least.",
							"A consumer can have its own, by outbox.set_consumer().",
							&outbox_inbox_retention, 7 * SECS_PER_DAY, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.request_retention",
							"Time that idempotency keys are kept after their requests were finished, or their leases ended.",
							NULL,
							&outbox_request_retention, SECS_PER_DAY, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.request_lease",
							"Time that outbox.begin_request() gives its caller before another one may take the request over.",
							NULL,
							&outbox_request_lease, 60, 1, SECS_PER_DAY,
							PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_response",
							"Largest response that outbox.finish_request() stores.",
							NULL,
							&outbox_max_response, 1024, 1, 256 * 1024,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
}

static void
define_traffic(void)
{
	DefineCustomIntVariable("outbox.max_payload",
							"Largest payload of an event.",
							NULL,
							&outbox_max_payload, 1024, 1, 256 * 1024,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_in_flight",
							"Requests of one database that may be in flight at a time.",
							NULL,
							&outbox_max_in_flight, 512, 1, 10000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_in_flight_per_tenant",
							"Requests of one tenant's subscriptions that may be in flight at a time.",
							NULL,
							&outbox_max_in_flight_per_tenant, 50, 1, 10000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("outbox.source",
							   "CloudEvents source of all events.",
							   "An empty string means urn:outbox: and the name of the database.",
							   &outbox_source, "",
							   PGC_SIGHUP, 0, check_source, NULL, NULL);
	DefineCustomStringVariable("outbox.traceparent",
							   "W3C trace context of the events that this session enqueues.",
							   "A value that is not valid is ignored.",
							   &outbox_traceparent, "",
							   PGC_USERSET, GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
}

static void
define_secrets(void)
{
	DefineCustomStringVariable("outbox.secret_key_file",
							   "File with the keys that secrets of subscriptions are encrypted with.",
							   "One key a line, 32 bytes as base64 or hexadecimal: the first encrypts, all decrypt. An empty string means that secrets are stored as they are.",
							   &outbox_secret_key_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, check_key_file, NULL, NULL);
}

static void
define_shared_memory(void)
{
	DefineCustomIntVariable("outbox.max_subscriptions_per_tenant",
							"Subscriptions with the same tenant that a database may have.",
							NULL,
							&outbox_max_subscriptions_per_tenant, 50, 1, 1000000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_databases",
							"Databases of this server that can use outbox.",
							NULL,
							&outbox_max_databases, 16, 1, 10000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_subscriptions",
							"Subscriptions that a database may have.",
							"The state of so many is shown, in all databases of this server together.",
							&outbox_max_subscriptions, 10000, 1, 1000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
}

void
outbox_settings_define(void)
{
	define_switches();
	define_retention();
	define_receiving();
	define_traffic();
	define_secrets();
	define_shared_memory();
	MarkGUCPrefixReserved("outbox");
}

static void
pin(const OutboxPinned *pinned, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (GetConfigOption(pinned[i].name, true, false) != NULL)	/* not every version has all of them */
			SetConfigOption(pinned[i].name, pinned[i].value, PGC_SUSET, PGC_S_OVERRIDE);
	}
}

/* What autovacuum does too. */
void
outbox_settings_pin(const OutboxPinned *own, int n)
{
	static const OutboxPinned everybody[] = {
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
		{"exit_on_error", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"}
	};

	pin(everybody, lengthof(everybody));
	pin(own, n);
}
