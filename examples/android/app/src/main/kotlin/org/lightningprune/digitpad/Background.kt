package org.lightningprune.digitpad

import android.app.Activity
import java.util.concurrent.Executors
import org.lightningprune.ProgramRunner
import org.lightningprune.logic.ModelException

/** Loads the program once and works with it away from the screen's thread; what goes wrong is said, in words. */
class Background(private val activity: Activity, private val say: (String) -> Unit) {
    private val thread = Executors.newSingleThreadExecutor()
    private var runner: ProgramRunner? = null

    fun <T> ask(work: (ProgramRunner) -> T, show: (T) -> Unit) = thread.execute {
        try {
            val result = work(runner ?: ProgramRunner.load(activity.applicationContext).also { runner = it })
            activity.runOnUiThread { show(result) }
        } catch (error: ModelException) {
            activity.runOnUiThread { say(error.message ?: "the program cannot be used") }
        }
    }

    fun close() {
        thread.execute { runner?.close() }
        thread.shutdown()
    }
}
