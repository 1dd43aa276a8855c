package org.lightningprune.digitpad

import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import org.lightningprune.AsyncRunner
import org.lightningprune.logic.ModelException

/** A screen with the program and a line of text; what goes wrong is said there, in words. */
abstract class ModelActivity : ComponentActivity() {
    private val scope = MainScope()
    protected lateinit var runner: AsyncRunner
    protected lateinit var text: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        runner = AsyncRunner(this)
        text = TextView(this)
        text.id = android.R.id.text1
        text.textSize = 24f
    }

    /** Do [work], which waits for the program away from the screen's thread. */
    protected fun start(work: suspend () -> Unit) {
        scope.launch {
            try {
                work()
            } catch (error: ModelException) {
                text.text = error.message
            }
        }
    }

    protected fun button(name: String, action: () -> Unit): Button {
        val button = Button(this)
        button.text = name
        button.setOnClickListener { action() }
        return button
    }

    /** Show [views] one above the other. */
    protected fun show(vararg views: View) {
        val column = LinearLayout(this)
        column.orientation = LinearLayout.VERTICAL
        column.fitsSystemWindows = true
        for (view in views) column.addView(view)
        setContentView(column)
    }

    override fun onDestroy() {
        scope.cancel()
        runner.close()
        super.onDestroy()
    }
}
