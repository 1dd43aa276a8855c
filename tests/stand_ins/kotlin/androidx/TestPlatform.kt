// Signatures of androidx.test:monitor that the tests on a phone use.
package androidx.test.platform.app

import android.content.Context

class Instrumentation {
    val targetContext = Context()
}

object InstrumentationRegistry {
    @JvmStatic fun getInstrumentation(): Instrumentation = Instrumentation()
}
