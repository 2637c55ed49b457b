/*
 * The differences between PostgreSQL 15 … 19 and between libcurl versions.
 *
 * The only file that looks at PG_VERSION_NUM or LIBCURL_VERSION_NUM.  Everything else is written
 * against the newest spelling; this header teaches it to the older servers.
 */
#ifndef OUTBOX_COMPAT_H
#define OUTBOX_COMPAT_H

#if defined(PG_VERSION_NUM) && PG_VERSION_NUM < 150000
#error "outbox needs PostgreSQL 15 or newer"
#endif

/* varlena macros left postgres.h in 16 */
#if defined(PG_VERSION_NUM) && PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* pg_noreturn moved in front of the declaration in 18 */
#if PG_VERSION_NUM < 180000
#define outbox_noreturn
#define outbox_noreturn_suffix pg_attribute_noreturn()
#else
#define outbox_noreturn pg_noreturn
#define outbox_noreturn_suffix
#endif

/* MyProcNumber replaced MyProc->pgprocno in 17, and the local transaction id moved */
#if PG_VERSION_NUM < 170000
#define OutboxLocalTransactionId() (MyProc->lxid)
#define OutboxMyProcNumber() (MyProc->pgprocno)
#else
#define OutboxLocalTransactionId() (MyProc->vxid.lxid)
#define OutboxMyProcNumber() (MyProcNumber)
#endif

/* the wait event set belongs to a resource owner since 17 */
#if PG_VERSION_NUM < 170000
#define OutboxCreateWaitEventSet(n) CreateWaitEventSet(TopMemoryContext, (n))
#else
#define OutboxCreateWaitEventSet(n) CreateWaitEventSet(NULL, (n))
#endif

/* whether synchronous_standby_names names anybody (replication/walsender_private.h; the same in every supported minor release) */
#define OutboxSyncStandbysDefined() ((WalSndCtl->sync_standbys_status & SYNC_STANDBY_DEFINED) != 0)

/* object_ownercheck() replaced a function per catalog in 16 */
#if PG_VERSION_NUM < 160000
#define OutboxOwnsDatabase(database, role) pg_database_ownercheck((database), (role))
#else
#define OutboxOwnsDatabase(database, role) object_ownercheck(DatabaseRelationId, (database), (role))
#endif

/* a tranche gets its name where it gets its number since 19; and hash tables in shared memory no longer grow */
#if PG_VERSION_NUM < 190000
#define OutboxNewTranche(tranche, name) ((tranche) = LWLockNewTrancheId(), LWLockRegisterTranche((tranche), (name)))
#define OutboxShmemInitHash(name, size, info, flags) ShmemInitHash((name), (size), (size), (info), (flags))
#else
#define OutboxNewTranche(tranche, name) ((tranche) = LWLockNewTrancheId(name))
#define OutboxShmemInitHash(name, size, info, flags) ShmemInitHash((name), (size), (info), (flags))
#endif

/* wait events can be named since 17 */
#if PG_VERSION_NUM < 170000
#define OutboxWaitEvent(name) PG_WAIT_EXTENSION
#else
#define OutboxWaitEvent(name) WaitEventExtensionNew(name)
#endif

/* ExecInsertIndexTuples learned about summarizing indexes in 16, index_beginscan about instrumentation in 18 */
#if PG_VERSION_NUM < 160000
#define OutboxExecInsertIndexTuples(target, slot, estate) \
	ExecInsertIndexTuples((target), (slot), (estate), false, false, NULL, NIL)
#define OutboxExecInsertIndexTuplesOnce(target, slot, estate, conflict) \
	ExecInsertIndexTuples((target), (slot), (estate), false, true, (conflict), NIL)
#else
#define OutboxExecInsertIndexTuples(target, slot, estate) \
	ExecInsertIndexTuples((target), (slot), (estate), false, false, NULL, NIL, false)
#define OutboxExecInsertIndexTuplesOnce(target, slot, estate, conflict) \
	ExecInsertIndexTuples((target), (slot), (estate), false, true, (conflict), NIL, false)
#endif

/* ExecCheckIndexConstraints can ignore a row of the table since 18 */
#if PG_VERSION_NUM < 180000
#define OutboxExecCheckIndexConstraints(target, slot, estate, tid) \
	ExecCheckIndexConstraints((target), (slot), (estate), (tid), NIL)
#else
#define OutboxExecCheckIndexConstraints(target, slot, estate, tid) \
	ExecCheckIndexConstraints((target), (slot), (estate), (tid), &(ItemPointerData) {{0, 0}, 0}, NIL)
#endif
#if PG_VERSION_NUM < 180000
#define OutboxIndexBeginScan(heap, index, snapshot, nkeys) index_beginscan((heap), (index), (snapshot), (nkeys), 0)
#else
#define OutboxIndexBeginScan(heap, index, snapshot, nkeys) index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0)
#endif

/* a minimal tuple may have room in front of it since 18 */
#if PG_VERSION_NUM < 180000
#define OutboxFormMinimalTuple(descriptor, values, nulls) heap_form_minimal_tuple((descriptor), (values), (nulls))
#else
#define OutboxFormMinimalTuple(descriptor, values, nulls) heap_form_minimal_tuple((descriptor), (values), (nulls), 0)
#endif

/* base64 works on bytes instead of characters since 18 */
#if PG_VERSION_NUM < 180000
#define OutboxBase64Encode(bytes, size, text, room) pg_b64_encode((const char *) (bytes), (size), (text), (room))
#define OutboxBase64Decode(text, size, bytes, room) pg_b64_decode((text), (size), (char *) (bytes), (room))
#else
#define OutboxBase64Encode(bytes, size, text, room) pg_b64_encode((bytes), (size), (text), (room))
#define OutboxBase64Decode(text, size, bytes, room) pg_b64_decode((text), (size), (bytes), (room))
#endif

/* the variables of transam were renamed in 17 */
#if PG_VERSION_NUM < 170000
#define OutboxOldestClogXid() (ShmemVariableCache->oldestClogXid)
#else
#define OutboxOldestClogXid() (TransamVariables->oldestClogXid)
#endif

/* since 19 the server itself ends such workers for commands that need a database to itself */
#if PG_VERSION_NUM < 190000
#define BGWORKER_INTERRUPTIBLE 0
#endif

/*
 * libcurl.  Seen by whoever includes curl/curl.h first; PostgreSQL's headers are not needed.
 */
#ifdef LIBCURL_VERSION_NUM
#if LIBCURL_VERSION_NUM < 0x075801
#error "outbox needs libcurl 7.88.1 or newer"
#endif

/* an endless header has a code of its own since 8.6 */
#if LIBCURL_VERSION_NUM >= 0x080600
#define OUTBOX_CURL_TOO_LARGE CURLE_TOO_LARGE
#else
#define OUTBOX_CURL_TOO_LARGE ((CURLcode) 100)
#endif

/* Before 8.1.1 a handle that has had an answer must not see a folded line at the beginning of the next one's fields (curl #11101).  What counts is the library that is loaded. */
#define OutboxFoldsAreUnsafe() (curl_version_info(CURLVERSION_NOW)->version_num < 0x080101)

/* since 8.20 resolver threads belong to the multi handle, which has no more than 20 unless told otherwise, and so does leaving them behind */
#if LIBCURL_VERSION_NUM >= 0x081400
#define OutboxMultiQuickExit(multi) curl_multi_setopt((multi), CURLMOPT_QUICK_EXIT, 1L)
#define OutboxMultiResolverThreads(multi, n) curl_multi_setopt((multi), CURLMOPT_RESOLVE_THREADS_MAX, (long) (n))
#else
#define OutboxMultiQuickExit(multi) ((void) (multi), CURLM_OK)
#define OutboxMultiResolverThreads(multi, n) ((void) (multi), (void) (n), CURLM_OK)
#endif
#endif							/* LIBCURL_VERSION_NUM */

#endif							/* OUTBOX_COMPAT_H */
