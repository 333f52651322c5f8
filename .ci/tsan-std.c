/*
 * Teaches ThreadSanitizer two things that it cannot see with the toolchain's standard library.
 *
 * The nightly toolchain ships std without instrumentation and without its source. Most of std's locks
 * are inlined into our own code and so are seen; the paths taken under contention are not inlined, and
 * what they acquire is invisible: every value guarded by a contended std::sync::Mutex would be reported
 * as a race. `.ci/run` finds the mangled names in the toolchain, hands them over as WRAP_* and
 * links with `--wrap`, so that calls from our code pass through here.
 *
 * And ThreadSanitizer does not follow fences: an Arc's last drop, which is a release decrement and then
 * an acquire fence, would be reported in every destructor.
 *
 * Only edges that really exist are added, on the address that carries them, so no real race is hidden.
 */
typedef unsigned long word;

extern void __tsan_acquire(void *address);
extern void __tsan_release(void *address);

#define REAL2(name) __real_##name
#define REAL(name) REAL2(name)
#define WRAP2(name) __wrap_##name
#define WRAP(name) WRAP2(name)
/* All of std's functions here take at most six integer-class arguments and return at most one. */
#define SLOW_PATH(name, before, after)                                                      \
    extern word REAL(name)(word, word, word, word, word, word);                             \
    word WRAP(name)(word a, word b, word c, word d, word e, word f) {                       \
        before;                                                                             \
        word result = REAL(name)(a, b, c, d, e, f);                                         \
        after;                                                                              \
        return result;                                                                      \
    }

/* A lock taken: what the last holder did happened before. */
SLOW_PATH(WRAP_MUTEX_LOCK, , __tsan_acquire((void *)a))
SLOW_PATH(WRAP_RWLOCK_READ, , __tsan_acquire((void *)a))
SLOW_PATH(WRAP_RWLOCK_WRITE, , __tsan_acquire((void *)a))
/* A condition variable gives its mutex (the second argument) up, and takes it again. */
SLOW_PATH(WRAP_CONDVAR_WAIT, __tsan_release((void *)b), __tsan_acquire((void *)b))
SLOW_PATH(WRAP_CONDVAR_WAIT_TIMEOUT, __tsan_release((void *)b), __tsan_acquire((void *)b))
/* A cell initialized: by another thread, which has published it, or by this one. std publishes right after the
 * initializer, a `&mut dyn FnMut`, and other threads may look at once: so the release has to stand at the
 * initializer's end and not behind the call. The initializer is handed on in a wrapping of the same type. */
enum { VTABLE_CALL_MUT = 4, VTABLE_WORDS };
struct initializer {
    word data;
    word (*call)(word, word);
    void *once;
};
static word initialize_and_release(word wrapped, word state) {
    struct initializer *real = (struct initializer *)wrapped;
    word result = real->call(real->data, state);
    __tsan_release(real->once);
    return result;
}
extern word REAL(WRAP_ONCE_CALL)(word, word, word, word, word, word);
word WRAP(WRAP_ONCE_CALL)(word once, word ignore_poison, word data, word vtable, word e, word f) {
    word *methods = (word *)vtable;
    struct initializer real = {data, (word (*)(word, word))methods[VTABLE_CALL_MUT], (void *)once};
    /* Drop, size and align are those of a reference's target that std never drops. */
    word wrapped[VTABLE_WORDS] = {0, sizeof real, sizeof(word), 0, (word)initialize_and_release};
    word result = REAL(WRAP_ONCE_CALL)(once, ignore_poison, (word)&real, (word)wrapped, e, f);
    __tsan_acquire((void *)once);
    return result;
}
/* A scoped thread counts itself out; `scope`, which is inlined, reads that counter with acquire. It is
 * one of the structure's three words, which one is for the compiler to choose. */
SLOW_PATH(WRAP_SCOPE_DECREMENT,
          (__tsan_release((word *)a), __tsan_release((word *)a + 1), __tsan_release((word *)a + 2)), )

/* An acquire fence synchronizes with whoever released what this thread's atomics read before it. The
 * last counter that was decremented or compared is remembered: that is what Arc does before its fence. */
static __thread void *last_read;

enum { ORDER_RELAXED, ORDER_CONSUME, ORDER_ACQUIRE, ORDER_RELEASE, ORDER_ACQ_REL, ORDER_SEQ_CST };

extern word __real___tsan_atomic64_fetch_sub(word *, word, int);
word __wrap___tsan_atomic64_fetch_sub(word *counter, word count, int order) {
    word before = __real___tsan_atomic64_fetch_sub(counter, count, order);
    last_read = counter;
    return before;
}

extern word __real___tsan_atomic64_compare_exchange_val(word *, word, word, int, int);
word __wrap___tsan_atomic64_compare_exchange_val(word *counter, word from, word to, int order, int failure) {
    word before = __real___tsan_atomic64_compare_exchange_val(counter, from, to, order, failure);
    last_read = counter;
    return before;
}

extern void __real___tsan_atomic_thread_fence(int);
void __wrap___tsan_atomic_thread_fence(int order) {
    __real___tsan_atomic_thread_fence(order);
    if (order != ORDER_RELEASE && order != ORDER_RELAXED && last_read != 0) {
        __tsan_acquire(last_read);
        last_read = 0;
    }
}
