// Signatures of androidx.test:core 1.6.1 that the tests on a phone use.
package androidx.test.core.app

import android.app.Activity

class ActivityScenario<A : Activity> private constructor() : AutoCloseable {
    fun interface ActivityAction<A : Activity> {
        fun perform(activity: A)
    }

    fun onActivity(action: ActivityAction<A>): ActivityScenario<A> = this

    override fun close() = Unit

    companion object {
        @JvmStatic fun <A : Activity> launch(activityClass: Class<A>): ActivityScenario<A> = ActivityScenario()
    }
}
