/*
 * The differences between PostgreSQL 15 … 19 and between libcurl versions.
 *
 * The only file that looks at PG_VERSION_NUM or LIBCURL_VERSION_NUM.  Everything else is written
 * against the newest spelling; this header teaches it to the older servers.
 */
#ifndef OUTBOX_COMPAT_H
#define OUTBOX_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "outbox needs PostgreSQL 15 or newer"
#endif

/* pg_noreturn moved in front of the declaration in 18 */
#if PG_VERSION_NUM < 180000
#define outbox_noreturn
#define outbox_noreturn_suffix pg_attribute_noreturn()
#else
#define outbox_noreturn pg_noreturn
#define outbox_noreturn_suffix
#endif

/* MyProcNumber replaced MyProc->pgprocno in 17 */
#if PG_VERSION_NUM < 170000
#define OutboxMyProcNumber() (MyProc->pgprocno)
#else
#define OutboxMyProcNumber() (MyProcNumber)
#endif

/* the wait event set belongs to a resource owner since 17 */
#if PG_VERSION_NUM < 170000
#define OutboxCreateWaitEventSet(n) CreateWaitEventSet(TopMemoryContext, (n))
#else
#define OutboxCreateWaitEventSet(n) CreateWaitEventSet(NULL, (n))
#endif

#if PG_VERSION_NUM < 190000
#define BGWORKER_INTERRUPTIBLE 0
#endif

#endif							/* OUTBOX_COMPAT_H */
